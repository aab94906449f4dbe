"""Scores of models as they are, and of WiSE-FT's line between two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stockpot import engine, errors
from stockpot.evaluate import Selection
from stockpot.recipe import Recipe
from stockpot.soups._ingredients import Correspondence, Ingredients, Model
from stockpot.soups._lines import plain
from stockpot.soups._running import Evaluation, Running

TENTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""The paper's places."""


@dataclass(frozen=True)
class Evaluations:
    """Models with their scores, in the user's order."""

    models: tuple[str, ...]
    scores: tuple[Mapping[str, float], ...]
    evaluated: int
    known: int

    def data(self) -> dict[str, object]:
        """Plain values."""
        rows = [
            {"model": model, "scores": {name: plain(value) for name, value in found.items()}}
            for model, found in zip(self.models, self.scores, strict=True)
        ]
        return {"models": rows, "evaluated": self.evaluated, "known": self.known}


def evaluate_models(
    models: Sequence[Model],
    evaluate: Evaluation,
    *,
    correspondence: Correspondence | None = None,
    running: Running | None = None,
) -> Evaluations:
    """Score each model as it is. Cost: one evaluation each; results are shared with all other studies."""
    running = running or Running()
    ingredients = Ingredients.open(models, None, correspondence)
    scorer = running.scorer(ingredients, evaluate)
    running.begin(len(ingredients.models))
    found = [scorer(ingredients.average([number]), name).values for number, name in enumerate(ingredients.models)]
    return Evaluations(ingredients.models, tuple(found), scorer.evaluated, scorer.known)


@dataclass(frozen=True)
class Sweep:
    """WiSE-FT at several places between zero-shot and fine-tuned; ``best``: the place that was chosen."""

    zero_shot: str
    fine_tuned: str
    metric: str
    direction: str
    alphas: tuple[float, ...]
    scores: tuple[Mapping[str, float], ...]
    best: float
    evaluated: int
    known: int
    warnings: tuple[str, ...] = ()
    out: Path | None = None

    def data(self) -> dict[str, object]:
        """Plain values: the decision log."""
        return {
            "kind": "wise_ft",
            "zero_shot": self.zero_shot,
            "fine_tuned": self.fine_tuned,
            "metric": self.metric,
            "direction": self.direction,
            "alphas": list(self.alphas),
            "scores": [{name: plain(value) for name, value in found.items()} for found in self.scores],
            "best": self.best,
        }


def wise_ft(
    zero_shot: Model,
    fine_tuned: Model,
    evaluate: Evaluation,
    *,
    alphas: Sequence[float] = TENTHS,
    select: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    correspondence: Correspondence | None = None,
    running: Running | None = None,
) -> Sweep:
    """Score (1 - a) w_zs + a w_ft over every entry, head included, and take the best a.

    Arguments: ``alphas``, places to score (default 0, .1, ... 1); ``out``, where to write the best (None: nowhere), the
    bytes of ``merge("wise_ft", ...)``; of equal scores the smaller a is taken; the rest as ``greedy``. Returns a Sweep.
    Raises UsageError kinds, EvaluatorError. Cost: one evaluation for each place. Reference: Wortsman et al., arXiv
    2109.01903, equation 1.
    """
    running = running or Running()
    if not alphas:
        raise errors.ParameterError("places between two models", expected="at least one", got=0)
    ingredients = Ingredients.open([fine_tuned], zero_shot, correspondence)
    scorer = running.scorer(ingredients, evaluate)
    live = running.live(ingredients)

    def recipe(alpha: float) -> Recipe:
        return ingredients.recipe("wise_ft", [0], {"alpha": alpha})

    if out is not None:
        engine.check_output(live.plan(recipe(0.5), Path(out).expanduser()), overwrite=overwrite, dry_run=True)
    running.begin(len(alphas))
    selection = Selection.parse(select)
    scores = []
    for alpha in alphas:
        scores.append(scorer(recipe(alpha), f"alpha {alpha:g}").values)
        selection = selection.among(scores[-1])
    best = max(range(len(alphas)), key=lambda place: (selection.gain(scores[place]), -alphas[place]))
    found = Sweep(
        ingredients.base or "", ingredients.models[0], selection.name or "", selection.direction, tuple(alphas),
        tuple(scores), alphas[best], scorer.evaluated, scorer.known,
    )  # fmt: skip
    if out is None:
        return found
    value = found.scores[best][found.metric]
    story = engine.Story(found.data(), (f"alpha {found.best:g} of {len(alphas)}: {found.metric} {value:.6g}.",))
    result = engine.write(live.plan(recipe(found.best), Path(out).expanduser(), story), overwrite=overwrite)
    return replace(found, out=result.out, warnings=result.warnings)
