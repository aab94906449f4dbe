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


@_studies.with_study
def wise_ft(
    *,
    zero_shot: Annotated[str, typer.Argument(metavar="ZERO_SHOT", help="The model before fine-tuning.")],
    fine_tuned: Annotated[str, typer.Argument(metavar="FINE_TUNED", help="The model after it.")],
    evaluate: opt.Evaluate,
    select: opt.Select = None,
    alphas: Annotated[
        str, typer.Option("--alphas", metavar="A:B:STEP|A,B,...", help="Shares of the fine-tuned model.")
    ] = "0:1:0.1",
    out: Annotated[Path | None, typer.Option("--out", metavar="OUT", help="Where to write the best.")] = None,
    dtype: opt.Dtype = None,
    overwrite: opt.Overwrite = False,
    study: _studies.Study,
) -> None:
    """Score mixtures between a zero-shot and a fine-tuned model, and take the best.

    `stockpot wise-ft ZERO_SHOT FINE_TUNED --evaluate eval.py:accuracy --out robust`
    """
    with _signals.loading():
        from stockpot import report, soups

    places = parse_alphas(alphas)
    _studies.require_places(study.json_out)
    study.warn_direction(select)
    with study.running("wise-ft") as running:
        found = soups.wise_ft(
            zero_shot, fine_tuned, evaluate, alphas=places, select=select, out=out, overwrite=overwrite,
            correspondence=study.correspondence(dtype), running=running,
        )  # fmt: skip
    written = None if found.out is None else str(found.out)
    more = {"out": written, "evaluated": found.evaluated, "known": found.known}
    shown = None if study.json else report.sweep_table(found)
    study.finish("wise-ft", found, shown, report.sweep_summary(found), warnings=found.warnings, more=more)
    if found.out is not None:
        _output.say(f"stockpot: written to {found.out}", study.quiet)


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
