"""Scores over the plane through three checkpoints, and along lines: the picture behind merging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from stockpot import errors
from stockpot.adapters import open_source
from stockpot.engine import Geometry
from stockpot.evaluate import Selection
from stockpot.measure import Array, Plane, plane_through
from stockpot.recipe import Recipe
from stockpot.soups._ingredients import Correspondence, Ingredients, Model
from stockpot.soups._lines import Line, line_between, places_of, plain, scored_line, shape_of
from stockpot.soups._running import Evaluation, Running
from stockpot.soups._scorer import Scorer


@dataclass(frozen=True)
class Mark:
    """A point with a name: its place in the plane, its distance from the plane, its scores.

    ``sort``: base, model, mean, model_stock or centre. Places are None where there is no plane.
    """

    name: str
    sort: str
    scores: Mapping[str, float]
    x: float | None = None
    y: float | None = None
    off: float | None = None

    def data(self) -> dict[str, object]:
        """Plain values."""
        scores = {name: plain(value) for name, value in self.scores.items()}
        return {"name": self.name, "sort": self.sort, "x": self.x, "y": self.y, "off_plane": self.off, "scores": scores}


@dataclass(frozen=True)
class Grid:
    """Scores over a plane: ``values[name][row, column]`` at ``(xs[column], ys[row])``, distances from its origin.

    ``through``: the three checkpoints; the first is the origin, the second lies on the first axis.
    """

    through: tuple[str, str, str]
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    values: Mapping[str, Array] = field(repr=False)

    def data(self) -> dict[str, object]:
        """Plain values."""
        values = {name: [[plain(one) for one in row] for row in rows.tolist()] for name, rows in self.values.items()}
        return {"through": list(self.through), "xs": list(self.xs), "ys": list(self.ys), "values": values}


@dataclass(frozen=True)
class Landscape:
    """Marked points, lines between them, and the grid of a plane. ``metric`` decides; all numbers are kept."""

    base: str
    models: tuple[str, ...]
    centre: str | None
    metric: str
    direction: str
    marks: tuple[Mark, ...]
    lines: tuple[Line, ...]
    grid: Grid | None
    evaluated: int
    known: int
    warnings: tuple[str, ...] = ()

    def data(self) -> dict[str, object]:
        """Plain values, for ``--json``; what is not finite is null."""
        return {
            "base": self.base,
            "models": list(self.models),
            "centre": self.centre,
            "metric": self.metric,
            "direction": self.direction,
            "points": [mark.data() for mark in self.marks],
            "lines": [line.data() for line in self.lines],
            "plane": None if self.grid is None else self.grid.data(),
            "evaluated": self.evaluated,
            "known": self.known,
        }


def landscape(
    models: Sequence[Model],
    evaluate: Evaluation,
    *,
    base: Model,
    centre: str | None = None,
    select: str | None = None,
    grid: int = 11,
    margin: float = 0.25,
    steps: int = 11,
    through: tuple[int, int, int] | None = None,
    correspondence: Correspondence | None = None,
    running: Running | None = None,
) -> Landscape:
    """Scores over the plane through three checkpoints, along its edges and along the line from the base to the mean.

    w(x, y) = p + x u1 + y u2 with u1 = q - p and u2 = (r - p) less its part along u1, both of length one. Marked: base,
    fine-tunes, their mean, Model Stock (its own merge, per tensor, at its foot in the plane), the centre.

    Arguments: ``models``, the fine-tunes; ``evaluate``, a function of a state dict, or words for one; ``centre``, a
    further checkpoint to mark; ``select``, the number that decides, with ``:min`` where less is better; ``grid``,
    points to a side of the plane (0: lines only); ``margin``, how far the plane goes beyond the marks, as a share of
    their extent; ``steps``, points on each line, odd; ``through``, numbers of three checkpoints (0 the base, 1 the
    first model; default 0, 1, 2: with one model there is no plane).
    Returns a Landscape. Raises UsageError kinds, MethodError where the three lie on one line, EvaluatorError.
    Cost: one read of all weights, then grid^2 + 4 (steps - 2) + N + 3 evaluations (one more with a centre), each
    reading the models it mixes; memory is one live model. Reference: Garipov et al., arXiv 1802.10026 (plane); Wortsman
    et al., arXiv 2203.05482.
    """
    running = running or Running()
    places = places_of(steps)
    if grid < 0 or grid == 1:
        raise errors.ParameterError("grid of a landscape", expected="0 (lines only), or 2 or more to a side", got=grid)
    if not 0.0 <= margin <= 10.0:
        raise errors.ParameterError("margin of a landscape", expected="0 to 10", got=margin)
    ingredients, told = running.pinned(Ingredients.open(models, base, correspondence))
    corners = _corners(through, len(models))
    opened = _with_centre(ingredients, centre)
    scorer = running.scorer(opened, evaluate)
    running.begin(_points(len(models), centre is not None, grid, steps))
    geometry = shape_of(ingredients, running, centre)
    plane = _plane(geometry, ingredients, corners) if grid else None
    study = _Study(ingredients, opened, centre, scorer, Selection.parse(select), geometry, plane)
    marks = study.marks()
    lines = study.lines(corners, places)
    return Landscape(
        ingredients.base or "",
        ingredients.models,
        centre,
        lines[0].metric,
        lines[0].direction,
        marks,
        lines,
        None if plane is None or corners is None else study.grid(corners, marks, grid, margin),
        scorer.evaluated,
        scorer.known,
        (*geometry.warnings, *told),
    )


def _points(models: int, centre: bool, grid: int, steps: int) -> int:
    """How many scores a landscape asks for; points that stand twice are evaluated once."""
    several = models > 1
    marked = 1 + models + 2 * several + centre
    return marked + (4 if several else 1) * steps + grid * grid * several


def _corners(through: tuple[int, int, int] | None, models: int) -> tuple[int, int, int] | None:
    if through is None:
        return (0, 1, 2) if models > 1 else None
    if len(set(through)) != 3 or not all(0 <= number <= models for number in through):
        raise errors.ParameterError(
            "a plane goes through three checkpoints", expected=f"three of 0 (the base) to {models}", got=through
        )
    return through


def _with_centre(ingredients: Ingredients, centre: str | None) -> Ingredients:
    if centre is None:
        return ingredients
    if centre in ingredients.sources:
        raise errors.UsageError("the centre is also listed as a model", file=centre, remedy="leave it out of the list")
    sources = dict(ingredients.sources)
    sources[centre] = open_source(centre).fetched(side_files=False)
    return replace(ingredients, sources=sources)


def _plane(geometry: Geometry, ingredients: Ingredients, corners: tuple[int, int, int] | None) -> Plane | None:
    total = geometry.by("model")
    if corners is None or not total.names:
        return None
    unit = np.vstack([np.zeros(total.grams.shape[-1] - 1), np.eye(total.grams.shape[-1] - 1)])
    plane = plane_through(total.grams[0], unit[list(corners)])
    if plane is None:
        names = [_name(ingredients, number) for number in corners]
        raise errors.MethodError(
            "three checkpoints on one line span no plane", got=", ".join(names),
            remedy="choose others with --plane, or --grid 0 for the lines alone",
        )  # fmt: skip
    return plane


def _name(ingredients: Ingredients, number: int) -> str:
    return (ingredients.base or "") if number == 0 else ingredients.models[number - 1]


@dataclass(frozen=True)
class _Study:
    """One landscape under way."""

    ingredients: Ingredients
    opened: Ingredients
    centre: str | None
    scorer: Scorer
    selection: Selection
    geometry: Geometry
    plane: Plane | None

    def marks(self) -> tuple[Mark, ...]:
        """Every point with a name, scored."""
        own, everyone = self.ingredients, range(len(self.ingredients.models))
        recipes: list[tuple[str, str, Recipe]] = [("base", _name(own, 0), own.base_alone())]
        recipes += [("model", own.models[number], own.average([number])) for number in everyone]
        if len(own.models) > 1:
            recipes.append(("mean", "mean", own.average(everyone)))
            recipes.append(("model_stock", "model_stock", own.recipe("model_stock", everyone)))
        if self.centre is not None:
            alone = Ingredients((self.centre,), None, self.opened.sources, own.correspondence)
            recipes.append(("centre", self.centre, alone.average([0])))
        # A single model has no mean and no Model Stock; the geometry marks its mean all the same.
        places = [point for name, point in self.geometry.points.items() if len(own.models) > 1 or name != "mean"]
        marks = []
        for (sort, name, recipe), weights in zip(recipes, places, strict=True):
            scores = self.scorer(recipe, name.replace("model_stock", "Model Stock"))
            self.selection.among(scores.values)
            place = (None, None, None) if self.plane is None else self.plane.place(self.geometry.grams, weights)
            marks.append(Mark(name, sort, scores.values, *place))
        return tuple(marks)

    def lines(self, corners: tuple[int, int, int] | None, places: Sequence[float]) -> tuple[Line, ...]:
        """The plane's edges (or base to the only model), and base to mean: WiSE-FT's line of the soup."""
        own, count = self.ingredients, len(self.ingredients.models)
        chosen = corners or (0, 1)
        pairs = [(i, j) for place, i in enumerate(chosen) for j in chosen[place + 1 :]]
        found = [self._line(min(pair), max(pair), places) for pair in pairs]
        if count > 1:

            def towards_mean(place: float) -> Recipe:
                return own.average(range(count)) if place == 1.0 else own.from_base([place / count] * count)

            found.append(scored_line(self.scorer, self.selection, (_name(own, 0), "mean"), towards_mean, places))
        return tuple(found)

    def _line(self, i: int, j: int, places: Sequence[float]) -> Line:
        own, everyone = self.ingredients, range(len(self.ingredients.models))
        if i > 0:
            column = self.geometry.pairs.index((i - 1, j - 1))
            total = self.geometry.by("model")
            angle = float(total.angles[0, column]) if total.names else None
            return line_between(self.scorer, self.selection, own, (i - 1, j - 1), places, angle)

        def recipe(place: float) -> Recipe:
            return own.average([j - 1]) if place == 1.0 else own.from_base([place * (k == j - 1) for k in everyone])

        return scored_line(self.scorer, self.selection, (_name(own, 0), _name(own, j)), recipe, places)

    def grid(self, corners: tuple[int, int, int], marks: Sequence[Mark], side: int, margin: float) -> Grid:
        """Scores at side x side points around the marks."""
        assert self.plane is not None
        xs = _axis([mark.x for mark in marks if mark.x is not None], side, margin)
        ys = _axis([mark.y for mark in marks if mark.y is not None], side, margin)
        count = len(self.ingredients.models)
        rows = []
        for y in ys:
            row = []
            for x in xs:
                weights = self.plane.point(x, y)[:count].tolist()
                row.append(self.scorer(self.ingredients.from_base(weights), f"the plane at ({x:.4g}, {y:.4g})").values)
            rows.append(row)
        values = {name: np.array([[one[name] for one in row] for row in rows]) for name in rows[0][0]}
        first, second, third = (_name(self.ingredients, number) for number in corners)
        return Grid((first, second, third), xs, ys, values)


def _axis(places: Sequence[float], side: int, margin: float) -> tuple[float, ...]:
    low, high = min(places), max(places)
    room = margin * (high - low)
    return tuple(float(one) for one in np.linspace(low - room, high + room, side))
