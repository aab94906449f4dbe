"""Print the tables of docs/demo.md from a run's record: ``python scripts/docs_demo.py stockpot-demo/demo.json``.

``--keep`` stores the record, without what only the figures need, as docs/results/demo.json.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stockpot.report import chosen_columns, rate_columns

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "docs" / "results" / "demo.json"


def lines(headings: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    rule = "|---" * len(headings) + "|"
    return ["| " + " | ".join(headings) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)]


def tables(record: Mapping[str, Any]) -> list[list[str]]:
    """Those of the page."""
    return [lines(*chosen_columns(record)), *(lines(*rate_columns(record[name])) for name in ("by_rate", "periods"))]


def main() -> None:
    """Print; keep."""
    record = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    if "--keep" in sys.argv:
        kept = {key: value for key, value in record.items() if key not in ("gallery", "out", "merge_command")}
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for table in tables(record):
        print("\n".join(table), end="\n\n")
    print("\n".join(f"- {sentence}" for sentence in record["findings"]))


if __name__ == "__main__":
    main()
