"""``stockpot demo``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stockpot.cli import _output
from stockpot.cli._options import Json, Quiet, Verbose


class Kind(str, Enum):
    """A network."""

    conv = "conv"
    vit = "vit"


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the checkpoints and the report.")] = Path(
        "stockpot-demo"
    ),
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another run; the same seed, the same table.")] = 0,
    full: Annotated[
        bool,
        typer.Option("--full", help="The whole study: five repetitions, and what merging while training depends on."),
    ] = False,
    network: Annotated[
        Kind, typer.Option("--network", help="A small convolutional network, or a small ViT.")
    ] = Kind.conv,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train small models on real handwritten digits, merge them, and measure: three minutes, no download."""
    from stockpot import report
    from stockpot.lab import DemoSettings, run_demo

    settings = DemoSettings(seed=seed, repetitions=5 if full else 1, network=network.value)
    found = run_demo(out, settings=settings, full=full, say=lambda text: _output.say(f"stockpot: {text}", quiet))
    if as_json:
        _output.print_object("demo", "done", [], dict(found.record))
        return
    from rich.box import SIMPLE
    from rich.table import Table

    headings, rows = report.chosen_columns(found.record)
    table = Table(headings[0], box=SIMPLE, pad_edge=False)
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    _output.print_table(table)
    for sentence in found.findings:
        print(sentence)
    print(
        "\nRates, soups and alphas are chosen on held-out digits, never on those of the table. After ± in the table: a"
    )
    print("standard error over repetitions; in sentences: two, over repetitions, or over the test digits of one.")
    print(f"Under shift: mean over {', '.join(found.record['shifts'])}.")
    print(f"\nThe report is {found.out / 'report.html'}, the checkpoints lie beside it. To repeat a merge by hand:")
    print(found.command)
