"""The results as the table of docs/performance.md: ``python -m benchmarks.table`` writes it there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES

RESULTS = Path(__file__).with_name("results")
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"
HEADINGS = ("case", "inputs", "read", "cache", "floor s", "stockpot s", "ratio", "limit", "peak MB", "mergekit s")


def row(found: Mapping[str, Any]) -> tuple[str, ...]:
    """One case as text."""
    seconds, limit = found["seconds_median"], found["limits"].get("ratio")
    theirs = f"{seconds['mergekit']:.1f} ({found['mergekit_ratio_median']:.1f}x)" if "mergekit" in seconds else ""
    return (
        f"[{found['name']}](../benchmarks/results/{found['name']}.json)",
        str(found["inputs"]),
        f"{found['input_bytes'] / 1e9:.1f} GB" + (" twice" if found["floor_reads"] == 2 else ""),
        found["cache"],
        f"{seconds['floor']:.2f}",
        f"{seconds['stockpot']:.2f}" + (f" (plan {seconds['plan']:.2f})" if "plan" in seconds else ""),
        f"{found['ratio_median']:.2f}",
        "" if limit is None else f"{limit['limit']:.1f}",
        f"{found['peak_rss_bytes'] / 1e6:.0f}",
        theirs,
    )


def table() -> str:
    """All results that there are, in the cases' order, and the machines."""
    found = [json.loads(path.read_text()) for name in CASES if (path := RESULTS / f"{name}.json").exists()]
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(row(one)) + " |" for one in found]
    machines = sorted({machine_text(one["machine"]) for one in found})
    return "\n".join([*lines, "", "Machine: " + "; ".join(machines) + ".", ""])


def machine_text(machine: Mapping[str, Any]) -> str:
    """A machine in words."""
    memory = f"{machine['memory_bytes'] / 1e9:.0f} GB"
    return f"{machine['cpu']}, {machine['cores']} cores, {memory}, {machine['kernel']}, Python {machine['python']}"


def written(page: str) -> str:
    """The page with the table in its place."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + rest[rest.index(END) :]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
