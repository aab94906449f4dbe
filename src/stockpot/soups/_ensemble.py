"""Ensembles: means of logits, all of them or a greedy choice, and what they are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stockpot import errors
from stockpot.evaluate import Selection
from stockpot.recipe import Recipe
from stockpot.soups._analysis import accuracy, calibration_error, cross_entropy, mcnemar
from stockpot.soups._choice import Rules, Step, choose, chosen
from stockpot.soups._ingredients import Correspondence, Ingredients, Model
from stockpot.soups._lines import plain
from stockpot.soups._running import Evaluation, Running

METRICS = ("accuracy", "loss", "calibration")


@dataclass(frozen=True)
class Predictor:
    """What predicts, scored from logits; ``cost``: models that must run; ``p`` of McNemar against the best single."""

    label: str
    sort: str
    members: tuple[int, ...]
    scores: Mapping[str, float]
    cost: int
    p: float | None = None


@dataclass(frozen=True)
class Ensembles:
    """Single models, the ensemble of all, the greedy ensemble, and soups of the same models, on one set of examples."""

    models: tuple[str, ...]
    base: str | None
    metric: str
    direction: str
    examples: int
    predictors: tuple[Predictor, ...]
    steps: tuple[Step, ...]
    evaluated: int
    known: int

    def data(self) -> dict[str, object]:
        """Plain values."""
        return {
            "models": list(self.models),
            "base": self.base,
            "metric": self.metric,
            "direction": self.direction,
            "examples": self.examples,
            "predictors": [
                {
                    "label": one.label,
                    "sort": one.sort,
                    "members": [self.models[number] for number in one.members],
                    "scores": {name: plain(value) for name, value in one.scores.items()},
                    "cost": one.cost,
                    "p": one.p,
                }
                for one in self.predictors
            ],
            "evaluated": self.evaluated,
            "known": self.known,
        }


def ensemble(
    models: Sequence[Model],
    evaluate: Evaluation,
    *,
    base: Model | None = None,
    select: str | None = None,
    rules: Rules | None = None,
    correspondence: Correspondence | None = None,
    running: Running | None = None,
) -> Ensembles:
    """The mean of all models' logits (not probabilities), a greedy ensemble on the same logits, and soups beside them.

    Arguments: ``evaluate``, an evaluator that returns ``logits`` and ``labels``; ``base``, whose Model Stock is then
    compared too; ``select``: accuracy (default), loss:min or calibration:min; ``rules`` of the greedy ensemble.
    Returns Ensembles: accuracy, loss (cross-entropy) and calibration error of each, the number of models that it has to
    run, and the p of McNemar's exact test against the best single. Raises EvaluatorError where logits are missing or of
    another shape. Cost: N + 1 evaluations (one more with a base); logits of all models are held. Reference: Wortsman
    et al., arXiv 2203.05482.
    """
    running = running or Running()
    selection = Selection.parse(select or "accuracy").among(METRICS)
    ingredients = Ingredients.open(models, base, correspondence)
    scorer = running.scorer(ingredients, evaluate, with_logits=True)
    everyone = tuple(range(len(ingredients.models)))
    running.begin(len(everyone) + (len(everyone) > 1) * (1 + (base is not None)))
    seen: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []

    def predicted(recipe: Recipe, label: str) -> NDArray[np.float32]:
        found = scorer(recipe, label)
        assert found.logits is not None  # the scorer was told to want them
        if found.labels is None:
            raise errors.EvaluatorError("the evaluator returned no labels", file=scorer.evaluator.name)
        seen.append((found.logits, found.labels))
        logits, labels = seen[0]
        if found.logits.shape != logits.shape or not np.array_equal(found.labels, labels):
            raise errors.EvaluatorError(
                f"other examples on {label} than before", file=scorer.evaluator.name,
                expected=logits.shape, got=found.logits.shape,
            )  # fmt: skip
        return found.logits

    logits = [predicted(ingredients.average([number]), name) for number, name in enumerate(ingredients.models)]
    labels = seen[0][1]

    def scored(found: NDArray[np.float64] | NDArray[np.float32]) -> dict[str, float]:
        return {
            "accuracy": accuracy(found, labels),
            "loss": cross_entropy(found, labels),
            "calibration": calibration_error(found, labels),
        }

    def mean(members: Sequence[int]) -> NDArray[np.float64]:
        # One at a time: all of them in float64 would be twice what is held already.
        total = np.zeros(logits[0].shape)
        for number in members:
            total += logits[number]
        return total / len(members)

    singles = [scored(one) for one in logits]
    selection = selection.among(singles[0])
    steps = choose(
        [selection.gain(one) for one in singles],
        lambda members: selection.gain(scored(mean(members))),
        rules or Rules(),
    )
    members = chosen(steps).members
    found: list[tuple[str, str, tuple[int, ...], NDArray[np.float64] | NDArray[np.float32], int]] = [
        (name, "model", (number,), logits[number], 1) for number, name in enumerate(ingredients.models)
    ]
    if len(everyone) > 1:
        found.append(("ensemble of all", "ensemble", everyone, mean(everyone), len(everyone)))
        found.append(("greedy ensemble", "greedy_ensemble", members, mean(members), len(members)))
        found.append(("uniform soup", "uniform", everyone, predicted(ingredients.average(everyone), "uniform soup"), 1))
        if ingredients.base is not None:
            stock = predicted(ingredients.recipe("model_stock", everyone), "Model Stock")
            found.append(("Model Stock", "model_stock", everyone, stock, 1))
    best = max(range(len(singles)), key=lambda number: selection.gain(singles[number]))
    right = logits[best].argmax(axis=1) == labels
    predictors = [
        Predictor(
            label, sort, own, scored(values), cost,
            None if values is logits[best] else mcnemar(values.argmax(axis=1) == labels, right),
        )
        for label, sort, own, values, cost in found
    ]  # fmt: skip
    return Ensembles(
        ingredients.models, ingredients.base, selection.name or "", selection.direction, len(logits[0]),
        tuple(predictors), tuple(steps), scorer.evaluated, scorer.known,
    )  # fmt: skip
