"""``stockpot landscape`` and ``stockpot barrier``."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from stockpot import errors
from stockpot.cli import _options as opt
from stockpot.cli import _output, _signals, _studies

_Steps = Annotated[int, typer.Option("--steps", metavar="N", help="Points on each line, with both ends; odd.")]


def landscape(
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
    json_out: opt.JsonOut = None,
    cache: opt.Cache = None,
    limit: opt.Limit = None,
    batch: opt.Batch = None,
    device: opt.EvaluatorDevice = None,
    precision: opt.Precision = None,
    seed: opt.Seed = None,
    timeout: opt.Timeout = None,
    check_evaluator: opt.CheckEvaluator = False,
    only: opt.Only = None,
    exclude: opt.Exclude = None,
    rename: opt.Rename = None,
    missing: opt.MissingTensors = None,
    mismatch: opt.MismatchedTensors = None,
    memory: opt.Memory = "192MiB",
    workers: opt.Workers = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Scores over the plane through three checkpoints, and along the lines between them.

    `stockpot landscape --base BASE FT1 FT2 --evaluate eval.py:accuracy --html landscape.html`
    """
    with _signals.loading():
        from stockpot import report, soups
        from stockpot.evaluate import Options

    through = _plane(plane)
    _studies.require_places(html, json_out, folder=figures)
    if html is not None or figures is not None:
        report.require_drawing()
    _studies.warn_direction(select, quiet)
    same = _studies.correspondence(only, exclude, rename, missing, mismatch)
    options = Options(limit, batch, device, precision, seed, timeout)
    with _studies.running(
        "landscape", options, cache=cache, memory=memory, workers=workers, twice=check_evaluator, quiet=quiet
    ) as running:
        found = soups.landscape(
            models, evaluate, base=base, centre=centre, select=select, grid=grid, margin=margin, steps=steps,
            through=through, correspondence=same, running=running,
        )  # fmt: skip
    _studies.write_json(json_out, found.data())
    if html is not None:
        _studies.write_text(html, report.landscape_page(found))
    if figures is not None:
        report.save_pictures(report.landscape_pictures(found), figures)
    if json:
        _output.print_object("landscape", "done", found.warnings, found.data())
    else:
        _output.print_table(report.landscape_table(found))
        for line in report.landscape_summary(found):
            print(line)
    _output.print_warnings(found.warnings, quiet)
    _studies.say_counts(found.evaluated, found.known, quiet)


def barrier(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models: folders, files or Hub ids.")],
    evaluate: opt.Evaluate,
    select: opt.Select = None,
    base: Annotated[str | None, typer.Option("--base", metavar="BASE", help="For the angles between them.")] = None,
    steps: _Steps = 11,
    html: opt.Html = None,
    figures: opt.Figures = None,
    json_out: opt.JsonOut = None,
    cache: opt.Cache = None,
    limit: opt.Limit = None,
    batch: opt.Batch = None,
    device: opt.EvaluatorDevice = None,
    precision: opt.Precision = None,
    seed: opt.Seed = None,
    timeout: opt.Timeout = None,
    check_evaluator: opt.CheckEvaluator = False,
    only: opt.Only = None,
    exclude: opt.Exclude = None,
    rename: opt.Rename = None,
    missing: opt.MissingTensors = None,
    mismatch: opt.MismatchedTensors = None,
    memory: opt.Memory = "192MiB",
    workers: opt.Workers = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Scores along the lines between all pairs of models: barriers, and whether the middle is better than the ends.

    `stockpot barrier FT1 FT2 FT3 --evaluate eval.py:accuracy`
    """
    with _signals.loading():
        from stockpot import report, soups
        from stockpot.evaluate import Options

    _studies.require_places(html, json_out, folder=figures)
    if html is not None or figures is not None:
        report.require_drawing()
    _studies.warn_direction(select, quiet)
    same = _studies.correspondence(only, exclude, rename, missing, mismatch)
    options = Options(limit, batch, device, precision, seed, timeout)
    with _studies.running(
        "barrier", options, cache=cache, memory=memory, workers=workers, twice=check_evaluator, quiet=quiet
    ) as running:
        found = soups.barrier(
            models, evaluate, base=base, select=select, steps=steps, correspondence=same, running=running
        )
    _studies.write_json(json_out, found.data())
    if html is not None:
        _studies.write_text(html, report.barrier_page(found))
    if figures is not None:
        report.save_pictures(report.barrier_pictures(found), figures)
    if json:
        _output.print_object("barrier", "done", found.warnings, found.data())
    else:
        _output.print_table(report.barrier_table(found))
        for line in report.barrier_summary(found):
            print(line)
    _output.print_warnings(found.warnings, quiet)
    _studies.say_counts(found.evaluated, found.known, quiet)


def _plane(text: str | None) -> Any:
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*", text)
    if match is None:
        raise errors.ParameterError("--plane cannot be read", expected="three numbers, as 0,1,2", got=repr(text))
    return tuple(int(part) for part in match.groups())
