"""Printing: one JSON object on stdout, or plain text; messages and progress on stderr."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stockpot import errors
from stockpot._version import __version__

if TYPE_CHECKING:
    from rich.console import RenderableType


def print_error(error: errors.StockpotError, *, command: str, json: bool) -> None:
    """``stockpot: error: ...`` and its problems on stderr; with ``--json`` the object on stdout too."""
    first, *rest = error.lines()
    say("\n".join([f"stockpot: error: {first}", *rest]), quiet=False)
    if json:
        print_object(command, "error", [], {"error": error.record()})


def print_object(command: str, status: str, warnings: Sequence[str], content: Mapping[str, Any]) -> None:
    """The one object of ``--json``."""
    record = {
        "stockpot": __version__,
        "command": command,
        "status": status,
        "warnings": list(warnings),
        **content,
    }
    print(jsonlib.dumps(record, allow_nan=False))


def print_warnings(warnings: Sequence[str], quiet: bool) -> None:
    """One line each on stderr."""
    if not quiet:
        for warning in warnings:
            say(f"stockpot: warning: {errors.printable(warning)}", quiet=False)


def say(text: str, quiet: bool) -> None:
    """A message on stderr."""
    if not quiet:
        encoding = sys.stderr.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)


def print_table(table: RenderableType) -> None:
    """A table on stdout, as wide as the terminal, or as wide as it needs when piped."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(table)


@contextmanager
def byte_progress(label: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar by bytes with rate and time left, on a terminal's stderr only."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def count_progress(label: str, quiet: bool) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """(start with so many, one is done): a bar with the time left, on a terminal's stderr only."""
    if quiet or not sys.stderr.isatty():
        yield (lambda total: None), (lambda done: None)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def start(total: int) -> None:
            bar.update(task, total=total)

        def step(done: str) -> None:
            bar.update(task, advance=1, description=escape(done))

        yield start, step
