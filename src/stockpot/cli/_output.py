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
        print(errors.printable_lines(text).encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)


def print_line(text: str) -> None:
    """A sentence on stdout."""
    print(errors.printable_lines(text))


def print_table(table: RenderableType) -> None:
    """A table on stdout, as wide as the terminal, or as wide as it needs when piped."""
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.segment import Segment

    class Plain:
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for text, style, control in console.render(table, options):
                yield Segment(text if control else errors.printable_lines(text), style, control)

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False)
    console.print(Plain())


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
def count_progress(label: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar by examples with the time left, on a terminal's stderr only."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


SHOWN_ROWS = 12


class Watched:
    """What a study tells while it runs: how much there is, each result, each decision. Here it falls on deaf ears."""

    def start(self, total: int) -> None:
        """So many results at most."""

    def result(self, label: str, values: Mapping[str, float]) -> None:
        """One more."""

    def verdict(self, word: str) -> None:
        """What was decided about the last one."""


@contextmanager
def watching(label: str, quiet: bool) -> Iterator[Watched]:
    """A live table of the last results with verdicts, and a bar with the time left, on a terminal's stderr only."""
    if quiet or not sys.stderr.isatty():
        yield Watched()
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
    from rich.text import Text

    bar = Progress(TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    task = bar.add_task("", total=None)
    rows: list[list[str]] = []

    def table() -> Group:
        shown = Table(box=None, show_header=False, pad_edge=False)
        for row in rows[-SHOWN_ROWS:]:
            shown.add_row(*(Text(cell) for cell in row))
        return Group(shown, bar)

    with Live(table(), console=Console(stderr=True), transient=True, refresh_per_second=8) as live:

        class Seen(Watched):
            def start(self, total: int) -> None:
                bar.update(task, total=total)

            def result(self, label: str, values: Mapping[str, float]) -> None:
                rows.append([label, ", ".join(f"{name} {value:.4g}" for name, value in values.items()), ""])
                bar.update(task, advance=1)
                live.update(table())

            def verdict(self, word: str) -> None:
                rows[-1][-1] = word
                live.update(table())

        yield Seen()
