"""``stockpot landscape`` and ``stockpot barrier``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from stockpot import errors
from stockpot.cli import _options as opt
from stockpot.cli import _signals, _studies

_Steps = Annotated[int, typer.Option("--steps", metavar="N", help="Points on each line, with both ends; odd.")]


@_studies.with_study
def landscape(
    *,
    models: Annotated[list[str], typer.Argument(metavar="FT1 FT2 ...", help="Fine-tunes: folders, files or Hub ids.")],
    base: Annotated[str, typer.Option("--base", metavar="BASE", help="The model they were fine-tuned from.")],
    evaluate: opt.Evaluate,
    select: opt.Select = None,
    centre: Annotated[str | None, typer.Option("--centre", metavar="CKPT", help="A further point to mark.")] = None,
    grid: Annotated[
        int, typer.Option("--grid", metavar="N", help="Points to a side of the plane; 0: lines only.")
    ] = 11,
    margin: Annotated[
        float, typer.Option("--margin", metavar="SHARE", help="How far the plane goes beyond the marks.")
    ] = 0.25,
    steps: _Steps = 11,
    plane: Annotated[
        str | None, typer.Option("--plane", metavar="A,B,C", help="Through which three; 0 is the base (default 0,1,2).")
    ] = None,
    html: opt.Html = None,
    figures: opt.Figures = None,
    study: _studies.Study,
) -> None:
    """Scores over the plane through three checkpoints, and along the lines between them.

    `stockpot landscape --base BASE FT1 FT2 --evaluate eval.py:accuracy --html landscape.html`
    """
    with _signals.loading():
        from stockpot import report, soups

    through = _plane(plane)
    _ready(study, select, html, figures)
    with study.running("landscape") as running:
        found = soups.landscape(
            models, evaluate, base=base, centre=centre, select=select, grid=grid, margin=margin, steps=steps,
            through=through, correspondence=study.correspondence(), running=running,
        )  # fmt: skip
    _studies.write_report(html, lambda: report.landscape_page(found), figures, lambda: report.landscape_pictures(found))
    shown = None if study.json else report.landscape_table(found)
    study.finish("landscape", found, shown, report.landscape_summary(found), warnings=found.warnings)


@_studies.with_study
def barrier(
    *,
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models: folders, files or Hub ids.")],
    evaluate: opt.Evaluate,
    select: opt.Select = None,
    base: Annotated[str | None, typer.Option("--base", metavar="BASE", help="For the angles between them.")] = None,
    steps: _Steps = 11,
    html: opt.Html = None,
    figures: opt.Figures = None,
    study: _studies.Study,
) -> None:
    """Scores along the lines between all pairs of models: barriers, and whether the middle is better than the ends.

    `stockpot barrier FT1 FT2 FT3 --evaluate eval.py:accuracy`
    """
    with _signals.loading():
        from stockpot import report, soups

    _ready(study, select, html, figures)
    with study.running("barrier") as running:
        found = soups.barrier(
            models, evaluate, base=base, select=select, steps=steps, correspondence=study.correspondence(),
            running=running,
        )  # fmt: skip
    _studies.write_report(html, lambda: report.barrier_page(found), figures, lambda: report.barrier_pictures(found))
    shown = None if study.json else report.barrier_table(found)
    study.finish("barrier", found, shown, report.barrier_summary(found), warnings=found.warnings)


def _ready(study: _studies.Study, select: str | None, html: Path | None, figures: Path | None) -> None:
    """What can be told before anything is evaluated."""
    _studies.require_places(html, study.json_out, folder=figures)
    _studies.require_report(html, figures)
    study.warn_direction(select)


def _plane(text: str | None) -> Any:
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*", text)
    if match is None:
        raise errors.ParameterError("--plane cannot be read", expected="three numbers, as 0,1,2", got=repr(text))
    return tuple(int(part) for part in match.groups())
