"""``stockpot soup``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stockpot import errors
from stockpot.cli import _options as opt
from stockpot.cli import _output, _signals, _studies

KINDS = ("uniform", "greedy", "learned")


@_studies.with_study
def soup(
    *,
    kind: Annotated[str, typer.Argument(metavar="uniform|greedy|learned", help="How to choose.")],
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models: folders, files or Hub ids.")],
    out: Annotated[Path, typer.Option("--out", metavar="OUT", help="Folder or file to write the soup to.")],
    base: Annotated[
        str | None, typer.Option("--base", metavar="BASE", help="For Model Stock as a rival, and for angles.")
    ] = None,
    evaluate: opt.EvaluateOptional = None,
    select: opt.Select = None,
    test: Annotated[
        str | None, typer.Option("--test", metavar="EVAL", help="Asked once at the end: the soup and its rivals.")
    ] = None,
    order: Annotated[
        str, typer.Option("--order", metavar="score|given|random", help="greedy: who is tried first.")
    ] = "score",
    reject_ties: Annotated[
        bool, typer.Option("--reject-ties", help="greedy: a model must help, not only do no harm.")
    ] = False,
    least_gain: Annotated[
        float, typer.Option("--least-gain", metavar="X", help="greedy: what a model must bring, at least.")
    ] = 0.0,
    most: Annotated[int | None, typer.Option("--most", metavar="N", help="greedy: members at most.")] = None,
    prune: Annotated[bool, typer.Option("--prune", help="greedy: start from all and drop, worst first.")] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", metavar="N", help="greedy: processes that score the single models.")
    ] = 1,
    learn: Annotated[
        str | None,
        typer.Option("--learn", metavar="TASK", help="learned: images:, text: or module:object (default: EVAL)."),
    ] = None,
    by_layer: Annotated[bool, typer.Option("--by-layer", help="learned: coefficients of each tensor.")] = False,
    free: Annotated[bool, typer.Option("--free", help="learned: any coefficients, no mixture.")] = False,
    no_temperature: Annotated[
        bool, typer.Option("--no-temperature", help="learned: leave the logits' scale as it is.")
    ] = False,
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", help="learned: passes over the data.")] = 5,
    rate: Annotated[float, typer.Option("--rate", metavar="X", help="learned: learning rate of AdamW.")] = 0.05,
    accumulate: Annotated[
        int | None,
        typer.Option("--accumulate", metavar="N", help="learned: batches a step (default: reading under a fifth)."),
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="NAME", help="Second metric of the scatter plot.")
    ] = None,
    html: opt.Html = None,
    figures: opt.Figures = None,
    dtype: opt.Dtype = None,
    overwrite: opt.Overwrite = False,
    study: _studies.Study,
) -> None:
    """One model out of many, mixed as your own evaluation says.

    `stockpot soup greedy FT1 FT2 FT3 --evaluate eval.py:accuracy --out soup`
    """
    with _signals.loading():
        from stockpot import report, soups

    if kind not in KINDS:
        raise errors.unknown_name("kind of soup", kind, KINDS)
    if kind != "uniform" and evaluate is None:
        raise errors.UsageError(f"a {kind} soup is chosen by evaluation", remedy="give --evaluate")
    if evaluate is None and any(given is not None for given in (select, study.limit, html, figures, against)):
        raise errors.UsageError(
            "nothing is evaluated", expected="--evaluate beside --select, --limit, --html and their like"
        )
    if jobs < 1:
        raise errors.ParameterError("processes", expected="1 or more", got=jobs)
    _studies.require_places(html, study.json_out, folder=figures)
    _studies.require_report(html, figures)
    _studies.require_apart(out, html, study.json_out, figures)
    study.warn_direction(select)
    words: Any = {"order": order}  # the rules check it
    rules = soups.Rules(
        accept_ties=not reject_ties, least_gain=least_gain, most=most, prune=prune, seed=study.seed or 0, **words
    )
    with study.running(f"{kind} soup", with_seed=kind != "learned" and order != "random") as running:
        shared: Any = {
            "base": base, "out": out, "select": select, "test": test, "overwrite": overwrite,
            "correspondence": study.correspondence(dtype), "running": running,
        }  # fmt: skip
        if kind == "uniform":
            found = soups.uniform(models, evaluate=evaluate, **shared)
        elif kind == "greedy":
            found = soups.greedy(models, evaluate or "", rules=rules, jobs=jobs, **shared)
        else:
            learning = soups.Learning(
                by_layer=by_layer, free=free, temperature=not no_temperature, epochs=epochs, rate=rate,
                accumulate=accumulate,
            )  # fmt: skip
            found = soups.learned(models, evaluate or "", learn=learn, learning=learning, **shared)
    _studies.write_report(
        html, lambda: report.soup_page(found, against), figures, lambda: report.soup_pictures(found, against)
    )
    more = {"out": str(found.out), "evaluated": found.evaluated, "known": found.known}
    scored = found.metric is not None
    shown = report.soup_table(found) if scored and not study.json else None
    lines = report.soup_summary(found)
    study.finish("soup", found, shown, lines, warnings=found.warnings, more=more, counted=scored)
    _output.say(f"stockpot: written to {found.out}", study.quiet)
