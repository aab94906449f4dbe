"""Scores along straight lines between models, and what they say: barrier and interpolation advantage."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stockpot import engine, errors
from stockpot.evaluate import Scores, Selection
from stockpot.recipe import Recipe
from stockpot.soups._ingredients import Correspondence, Ingredients, Model
from stockpot.soups._running import Evaluation, Running
from stockpot.soups._scorer import Scorer


@dataclass(frozen=True)
class Line:
    """Scores at ``places`` from 0 (``start``) to 1 (``end``); ``metric`` decides, ``direction`` says which is better.

    ``angle``: between the task vectors of two fine-tunes, in radians; None where there is no base, or the base is an
    end.
    """

    start: str
    end: str
    places: tuple[float, ...]
    scores: tuple[Mapping[str, float], ...]
    metric: str
    direction: str
    angle: float | None = None

    @property
    def values(self) -> tuple[float, ...]:
        """The deciding number at each place."""
        return tuple(one[self.metric] for one in self.scores)

    @property
    def barrier(self) -> tuple[float, float]:
        """(height, place): max over a of how much worse w_a is than the straight line between its ends' scores.

        height = max_a s * [ E(w_a) - (1 - a) E(w_0) - a E(w_1) ], s = 1 where less is better, -1 where more is. Never
        below 0, since the ends count; NaN where an end is infinite. Reference: Frankle et al., arXiv 1912.05671,
        equation 1 (there for error).
        """
        first, last = self.values[0], self.values[-1]
        drops = [
            (self._sign * ((1.0 - place) * first + place * last - value), -number)
            for number, (place, value) in enumerate(zip(self.places, self.values, strict=True))
        ]
        known = [drop for drop in drops if not math.isnan(drop[0])]
        if not math.isfinite(first) or not math.isfinite(last) or not known:
            return math.nan, 0.0
        height, number = max(known)
        return max(0.0, height), self.places[-number]

    @property
    def advantage(self) -> float:
        """Of the middle over the mean of the ends: s * [ E(w_1/2) - (E(w_0) + E(w_1)) / 2 ], positive where better."""
        middle = self.values[len(self.values) // 2]
        return self._sign * (middle - (self.values[0] + self.values[-1]) / 2.0)

    @property
    def _sign(self) -> float:
        return 1.0 if self.direction == "max" else -1.0

    def data(self) -> dict[str, object]:
        """Plain values."""
        height, place = self.barrier
        return {
            "start": self.start,
            "end": self.end,
            "places": list(self.places),
            "scores": [{name: plain(value) for name, value in one.items()} for one in self.scores],
            "barrier": plain(height),
            "barrier_at": place,
            "advantage": plain(self.advantage),
            "angle_degrees": None if self.angle is None else plain(math.degrees(self.angle)),
        }


@dataclass(frozen=True)
class Barriers:
    """Lines between all pairs of models."""

    base: str | None
    models: tuple[str, ...]
    metric: str
    direction: str
    lines: tuple[Line, ...]
    evaluated: int
    known: int
    warnings: tuple[str, ...] = ()

    def data(self) -> dict[str, object]:
        """Plain values, for ``--json``; what is not finite is null."""
        return {
            "base": self.base,
            "models": list(self.models),
            "metric": self.metric,
            "direction": self.direction,
            "lines": [line.data() for line in self.lines],
            "evaluated": self.evaluated,
            "known": self.known,
        }


def barrier(
    models: Sequence[Model],
    evaluate: Evaluation,
    *,
    base: Model | None = None,
    select: str | None = None,
    steps: int = 11,
    correspondence: Correspondence | None = None,
    running: Running | None = None,
) -> Barriers:
    """Scores along the lines between all pairs of models: is there a barrier, is their middle better than they are?

    Arguments: ``models``, two or more; ``evaluate``, a function of a state dict, or words for one; ``base``, for the
    angles between the task vectors (then all weights are read once more); ``select``, the number that decides, with
    ``:min`` where less is better; ``steps``, points on each line with both ends, odd so that the middle is one.
    Returns Barriers. Raises UsageError kinds, EvaluatorError. Cost: N + N (N - 1) / 2 * (steps - 2) evaluations, each
    reading two models; memory is one live model. Reference: Frankle et al., arXiv 1912.05671 (barrier); Wortsman et
    al., arXiv 2203.05482, figure 2 (advantage against angle).
    """
    running = running or Running()
    places = places_of(steps)
    models = list(models) if not isinstance(models, str) else models
    if len(models) < 2:
        raise errors.UsageError("a line has two ends", expected="two models or more", got=len(models))
    ingredients, told = running.pinned(Ingredients.open(models, base, correspondence))
    scorer = running.scorer(ingredients, evaluate)
    running.begin(len(models) * (len(models) - 1) // 2 * steps)
    angles, warnings = _angles(ingredients, running)
    selection = Selection.parse(select)
    lines = [
        line_between(scorer, selection, ingredients, (i, j), places, angles.get((i, j)))
        for i in range(len(models))
        for j in range(i + 1, len(models))
    ]
    return Barriers(
        ingredients.base, ingredients.models, lines[0].metric, lines[0].direction, tuple(lines), scorer.evaluated,
        scorer.known, (*warnings, *told),
    )  # fmt: skip


def places_of(steps: int) -> tuple[float, ...]:
    """From 0 to 1; odd, so that the middle is one of them."""
    if steps < 3 or steps % 2 == 0:
        raise errors.ParameterError("steps of a line", expected="an odd number, 3 or more", got=steps)
    return tuple(number / (steps - 1) for number in range(steps))


def line_between(
    scorer: Scorer,
    selection: Selection,
    ingredients: Ingredients,
    ends: tuple[int, int],
    places: Sequence[float],
    angle: float | None = None,
) -> Line:
    """Two models, and what lies between them: (1 - a) w_i + a w_j."""
    i, j = ends

    def recipe(place: float) -> Recipe:
        kept = [(number, weight) for number, weight in ((i, 1.0 - place), (j, place)) if weight]
        return ingredients.average([number for number, _ in kept], [weight for _, weight in kept])

    return scored_line(scorer, selection, (ingredients.models[i], ingredients.models[j]), recipe, places, angle)


def scored_line(
    scorer: Scorer,
    selection: Selection,
    ends: tuple[str, str],
    recipe: Callable[[float], Recipe],
    places: Sequence[float],
    angle: float | None = None,
) -> Line:
    """The scores of ``recipe(place)`` at every place; the ends first."""
    found: dict[float, Scores] = {}
    for place in (places[0], places[-1], *places[1:-1]):
        label = ends[0] if place == 0.0 else ends[1] if place == 1.0 else f"{ends[0]} to {ends[1]} at {place:.3g}"
        found[place] = scorer(recipe(place), label)
        selection = selection.among(found[place].values)
    return Line(
        *ends, tuple(places), tuple(found[place].values for place in places),
        selection.name or "", selection.direction, angle,
    )  # fmt: skip


def _angles(ingredients: Ingredients, running: Running) -> tuple[dict[tuple[int, int], float], tuple[str, ...]]:
    """Angles over the whole model by pair; none without a base."""
    if ingredients.base is None:
        return {}, ()
    geometry = shape_of(ingredients, running)
    total = geometry.by("model")
    if not total.names:
        return {}, geometry.warnings
    return dict(zip(total.pairs, total.angles[0].tolist(), strict=True)), geometry.warnings


def shape_of(ingredients: Ingredients, running: Running, centre: str | None = None) -> engine.Geometry:
    """The geometry of the ingredients around their base, tensor by tensor; all weights are read once."""
    with_centre = Ingredients(
        (*ingredients.models, *([] if centre is None else [centre])),
        ingredients.base,
        ingredients.sources,
        ingredients.correspondence,
    )
    return engine.measure_geometry(
        with_centre.recipe("geometry", range(len(with_centre.models))),
        centre=centre,
        granularity="tensor",
        kinds={},
        memory=running.memory_bytes,
        workers=running.workers,
        device=engine.choose_device(running.device),
        opened=ingredients.sources,
    )


def plain(value: float) -> float | None:
    """For JSON: what is not finite is null."""
    return value if math.isfinite(value) else None
