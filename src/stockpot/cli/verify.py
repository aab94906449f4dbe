"""``stockpot verify``."""

from __future__ import annotations

from typing import Annotated

import typer

from stockpot import errors
from stockpot.cli import _output
from stockpot.cli._options import Json, Quiet, Verbose


def verify(
    out: Annotated[str, typer.Argument(metavar="OUT", help="An output of stockpot: a folder or one file.")],
    recompute: Annotated[
        float, typer.Option("--recompute", metavar="FRACTION", help="Derive this share of it anew from the inputs.")
    ] = 0.0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Prove an output against what it says of itself: layout, digests, sums, and a re-computed sample."""
    import stockpot

    with _output.byte_progress("verifying", quiet) as progress:
        result = stockpot.verify(out, recompute=recompute, progress=progress)
    if result.problems:
        raise errors.DamageError(
            f"damage found: {result.problems[0]}", file=out, remedy="make it anew, or copy it again",
            problems=result.problems[1:],
        )  # fmt: skip
    if json:
        _output.print_object("verify", "done", result.notes, result.record())
    _output.print_warnings(result.notes, quiet)
    from stockpot.report import counted

    held = f"{counted(result.tensors, 'tensor')}, {counted(result.files, 'file')}"
    again = f", {counted(result.recomputed, 'tensor')} computed anew" if recompute else ""
    _output.say(f"stockpot: {out} is whole: {held}{again}", quiet)
