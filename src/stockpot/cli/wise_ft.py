"""``stockpot wise-ft``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from stockpot import errors
from stockpot.cli import _options as opt
from stockpot.cli import _output, _signals, _studies

MOST_ALPHAS = 10_001


def wise_ft(
    zero_shot: Annotated[str, typer.Argument(metavar="ZERO_SHOT", help="The model before fine-tuning.")],
    fine_tuned: Annotated[str, typer.Argument(metavar="FINE_TUNED", help="The model after it.")],
    evaluate: opt.Evaluate,
    select: opt.Select = None,
    alphas: Annotated[
        str, typer.Option("--alphas", metavar="A:B:STEP|A,B,...", help="Shares of the fine-tuned model.")
    ] = "0:1:0.1",
    out: Annotated[Path | None, typer.Option("--out", metavar="OUT", help="Where to write the best.")] = None,
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
    dtype: opt.Dtype = None,
    memory: opt.Memory = "192MiB",
    workers: opt.Workers = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output of stockpot.")] = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Score mixtures between a zero-shot and a fine-tuned model, and take the best.

    `stockpot wise-ft ZERO_SHOT FINE_TUNED --evaluate eval.py:accuracy --out robust`
    """
    with _signals.loading():
        from stockpot import report, soups
        from stockpot.evaluate import Options

    places = parse_alphas(alphas)
    _studies.require_places(json_out)
    _studies.warn_direction(select, quiet)
    same = _studies.correspondence(only, exclude, rename, missing, mismatch, dtype)
    options = Options(limit, batch, device, precision, seed, timeout)
    with _studies.running(
        "wise-ft", options, cache=cache, memory=memory, workers=workers, twice=check_evaluator, quiet=quiet
    ) as running:
        found = soups.wise_ft(
            zero_shot, fine_tuned, evaluate, alphas=places, select=select, out=out, overwrite=overwrite,
            correspondence=same, running=running,
        )  # fmt: skip
    _studies.write_json(json_out, found.data())
    if json:
        content = {
            **found.data(), "out": None if found.out is None else str(found.out),
            "evaluated": found.evaluated, "known": found.known,
        }  # fmt: skip
        _output.print_object("wise-ft", "done", found.warnings, content)
    else:
        _output.print_table(report.sweep_table(found))
        for line in report.sweep_summary(found):
            print(line)
    _output.print_warnings(found.warnings, quiet)
    _studies.say_counts(found.evaluated, found.known, quiet)
    if found.out is not None:
        _output.say(f"stockpot: written to {found.out}", quiet)


def parse_alphas(text: str) -> tuple[float, ...]:
    """``A:B:STEP`` with both ends, or a list with commas.

    >>> parse_alphas("0:1:0.25"), parse_alphas("0.3, .7")
    ((0.0, 0.25, 0.5, 0.75, 1.0), (0.3, 0.7))
    """
    number = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
    match = re.fullmatch(f"{number}:{number}:{number}", text)
    if match is not None:
        start, stop, step = (float(part) for part in match.groups())
        count = round((stop - start) / step) if step else -1
        if 0 <= count < MOST_ALPHAS:
            # The decimal that the user means, not a sum of rounding errors.
            return tuple(float(f"{start + place * step:.12g}") for place in range(count + 1))
    elif all(re.fullmatch(number, part) for part in text.split(",")):
        return tuple(float(part) for part in text.split(","))
    raise errors.ParameterError(
        "--alphas cannot be read", expected="A:B:STEP, as 0:1:0.1, or numbers with commas", got=repr(text)
    )
