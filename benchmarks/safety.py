"""What ``make soak`` and the fuzzing campaign saw, as docs/safety.md shows it: ``python -m benchmarks.safety``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.table import BEGIN, END, machine_text

RESULTS = Path(__file__).with_name("results") / "safety"
PAGE = Path(__file__).parents[1] / "docs" / "safety.md"
ABOUT = ("machine", "seconds")


def shown(value: Any) -> str:
    """A fact as text.

    >>> shown({"planning": 20, "bytes_read": 1234567}), shown(0.25), shown([1, 2])
    ('planning 20, bytes read 1,234,567', '0.25', '1, 2')
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{words(key)} {shown(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def words(name: str) -> str:
    """The name of a fact for people."""
    return name.replace("_", " ")


def section(path: Path) -> list[str]:
    """One campaign: its facts, a line each."""
    found = json.loads(path.read_text("utf-8"))
    lines = [f"### {words(path.stem.replace('-', ' ')).capitalize()}", "", "| what | seen |", "|---|---|"]
    lines += [f"| {words(name)} | {shown(value)} |" for name, value in found.items() if name not in ABOUT]
    machine = found["machine"]
    said = f"{found['seconds']:,.0f} s on {machine['date'][:10]}: {machine_text(machine)}"
    return [*lines, "", f"{said} ([all numbers](../benchmarks/results/safety/{path.name})).", ""]


def written(page: str) -> str:
    """The page with the results in their place."""
    before, rest = page.split(BEGIN)
    lines = [line for path in sorted(RESULTS.glob("*.json")) for line in section(path)]
    return before + BEGIN + "\n".join(lines) + rest[rest.index(END) :]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
