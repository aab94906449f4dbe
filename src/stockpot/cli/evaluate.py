"""``stockpot evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from stockpot.cli import _options as opt
from stockpot.cli import _signals, _studies


@_studies.with_study
def evaluate(
    *,
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models: folders, files or Hub ids.")],
    evaluate: opt.Evaluate,
    study: _studies.Study,
) -> None:
    """Score models as they are; results are kept for soups and all else.

    `stockpot evaluate FT1 FT2 --evaluate eval.py:accuracy`
    """
    with _signals.loading():
        from stockpot import report, soups

    _studies.require_places(study.json_out)
    with study.running("evaluating") as running:
        found = soups.evaluate_models(models, evaluate, correspondence=study.correspondence(), running=running)
    shown = None if study.json else report.evaluations_table(found)
    study.finish("evaluate", found, shown, [])
