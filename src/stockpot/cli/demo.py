"""``stockpot demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stockpot.cli import _output
from stockpot.cli._options import Json, Quiet, Verbose

if TYPE_CHECKING:
    from rich.table import Table

    from stockpot.lab import DemoReport


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the checkpoints.")] = Path("stockpot-demo"),
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another run; the same seed, the same table.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train small models on real handwritten digits, merge them, and measure: about a minute, no download."""
    from stockpot.lab import DemoSettings, run_demo

    report = run_demo(out, settings=DemoSettings(seed=seed), say=lambda text: _output.say(f"stockpot: {text}", quiet))
    if as_json:
        _output.print_object("demo", "done", [], report.record())
        return
    _output.print_table(_table(report))
    for sentence in report.findings:
        print(sentence)
    shifts = ", ".join(report.rows[0].by_shift)
    print("Differences: points ± two standard errors over the test digits; one within them counts as none.")
    print(f"Under shift: mean over {shifts}.")
    print(f"\nThe checkpoints are in {report.out}. To repeat a merge by hand:\n{report.command}")


def _table(report: DemoReport) -> Table:
    """Accuracies in percent: means over the checkpoints of a kind, and their range where there are several."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table("accuracy %", box=SIMPLE, pad_edge=False)
    for title in ("checkpoints", "in distribution", "range", "under shift", "range"):
        table.add_column(title, justify="right")
    for row in report.rows:
        cells = []
        for found in (row.in_distribution, row.out_of_distribution):
            cells += [f"{found.mean:.1f}", f"{found.low:.1f}-{found.high:.1f}" if row.checkpoints > 1 else ""]
        table.add_row(row.name, str(row.checkpoints), *cells)
    return table
