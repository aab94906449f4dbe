"""``stockpot ensemble``."""

from __future__ import annotations

from typing import Annotated

import typer

from stockpot.cli import _options as opt
from stockpot.cli import _signals, _studies


@_studies.with_study
def ensemble(
    *,
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models: folders, files or Hub ids.")],
    evaluate: opt.Evaluate,
    select: Annotated[
        str | None,
        typer.Option("--select", metavar="accuracy|loss:min|calibration:min", help="What decides (accuracy)."),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", metavar="BASE", help="For Model Stock as a rival.")] = None,
    study: _studies.Study,
) -> None:
    """Means of logits, all models or a greedy choice, beside soups of the same models.

    `stockpot ensemble FT1 FT2 FT3 --evaluate eval.py:with_logits`
    """
    with _signals.loading():
        from stockpot import report, soups

    _studies.require_places(study.json_out)
    study.warn_direction(select)
    with study.running("ensemble") as running:
        found = soups.ensemble(
            models, evaluate, base=base, select=select, correspondence=study.correspondence(), running=running
        )
    shown = None if study.json else report.ensembles_table(found)
    study.finish("ensemble", found, shown, report.ensembles_summary(found))
