"""``stockpot evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from stockpot.cli import _options as opt
from stockpot.cli import _output, _signals, _studies


def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models: folders, files or Hub ids.")],
    evaluate: opt.Evaluate,
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
    """Score models as they are; results are kept for soups and all else.

    `stockpot evaluate FT1 FT2 --evaluate eval.py:accuracy`
    """
    with _signals.loading():
        from stockpot import report, soups
        from stockpot.evaluate import Options

    _studies.require_places(json_out)
    options = Options(limit, batch, device, precision, seed, timeout)
    with _studies.running(
        "evaluating", options, cache=cache, memory=memory, workers=workers, twice=check_evaluator, quiet=quiet
    ) as running:
        found = soups.evaluate_models(models, evaluate, running=running)
    _studies.write_json(json_out, found.data())
    if json:
        _output.print_object("evaluate", "done", [], found.data())
    else:
        _output.print_table(report.evaluations_table(found))
    _studies.say_counts(found.evaluated, found.known, quiet)
