"""What ``make soak`` and the fuzzing campaign saw, as docs/safety.md shows it: ``python -m benchmarks.safety``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.table import BEGIN, END, machine_text
from stockpot.report import human_bytes

RESULTS = Path(__file__).with_name("results") / "safety"
PAGE = Path(__file__).parents[1] / "docs" / "safety.md"
ABOUT = ("machine", "seconds")


MANY = 6
"""Values of a list that are shown; of a longer one the ends."""


def shown(value: Any, name: str = "") -> str:
    """A fact as text; long lists below it are left to the file.

    >>> shown({"kills": 20, "by_file": {"a.json": 3}}), shown(1_234_567, "read_bytes"), shown([1, 2]), shown([])
    ('kills 20, by file (a.json 3)', '1.23 MB', '1, 2', 'nothing')
    """
    if isinstance(value, Mapping):
        found = []
        for key, one in value.items():
            if not isinstance(one, Mapping):
                found.append(f"{words(key)} {shown(one, f'{name}_{key}')}")
            elif 0 < len(one) <= MANY:
                found.append(f"{words(key)} ({shown(one, key)})")
        return ", ".join(found)
    if isinstance(value, list) and value:
        each = [shown(one, name) for one in value]
        return ", ".join(each) if len(each) <= MANY else f"{each[0]} to {each[-1]} ({len(each)} samples)"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "nothing" if value in ("", []) else str(value)
    return human_bytes(value) if "bytes" in name and abs(value) >= 1000 else f"{value:,}"


def words(name: str) -> str:
    """The name of a fact for people; that of a file as it is."""
    return name if "." in name else name.replace("_", " ")


def rows(name: str, value: Any) -> list[str]:
    """Lines of the table; a fact about several things has one for each."""
    if isinstance(value, Mapping) and value and all(isinstance(one, Mapping) for one in value.values()):
        return [f"| {words(name)}: {words(key)} | {shown(one, key)} |" for key, one in value.items()]
    return [f"| {words(name)} | {shown(value, name)} |"]


def section(path: Path) -> list[str]:
    """One campaign: its facts, a line each."""
    found = json.loads(path.read_text("utf-8"))
    lines = [f"### {words(path.stem.replace('-', ' ')).capitalize()}", "", "| what | seen |", "|---|---|"]
    lines += [line for name, value in found.items() if name not in ABOUT for line in rows(name, value)]
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
