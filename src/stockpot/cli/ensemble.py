"""``stockpot ensemble``."""

from __future__ import annotations

from typing import Annotated

import typer

from stockpot.cli import _options as opt
from stockpot.cli import _output, _signals, _studies


def ensemble(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models: folders, files or Hub ids.")],
    evaluate: opt.Evaluate,
    select: Annotated[
        str | None,
        typer.Option("--select", metavar="accuracy|loss:min|calibration:min", help="What decides (accuracy)."),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", metavar="BASE", help="For Model Stock as a rival.")] = None,
    json_out: opt.JsonOut = None,
    cache: opt.Cache = None,
    limit: opt.Limit = None,
    batch: opt.Batch = None,
    device: opt.EvaluatorDevice = None,
    precision: opt.Precision = None,
    seed: opt.Seed = None,
    timeout: opt.Timeout = None,
    check_evaluator: opt.CheckEvaluator = False,
    memory: opt.Memory = "192MiB",
    workers: opt.Workers = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Means of logits, all models or a greedy choice, beside soups of the same models.

    `stockpot ensemble FT1 FT2 FT3 --evaluate eval.py:with_logits`
    """
    with _signals.loading():
        from stockpot import report, soups
        from stockpot.evaluate import Options

    _studies.require_places(json_out)
    _studies.warn_direction(select, quiet)
    options = Options(limit, batch, device, precision, seed, timeout)
    with _studies.running(
        "ensemble", options, cache=cache, memory=memory, workers=workers, twice=check_evaluator, quiet=quiet
    ) as running:
        found = soups.ensemble(models, evaluate, base=base, select=select, running=running)
    _studies.write_json(json_out, found.data())
    if json:
        _output.print_object("ensemble", "done", [], found.data())
    else:
        _output.print_table(report.ensembles_table(found))
        for line in report.ensembles_summary(found):
            print(line)
    _studies.say_counts(found.evaluated, found.known, quiet)
