"""The shape that fine-tunes make around their base: one pass for inner products, everything else from them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stockpot import errors
from stockpot.checkpoint import Source, count
from stockpot.engine._align import Slot
from stockpot.engine._execute import Progress, Run, execute
from stockpot.engine._fetch import fetched
from stockpot.engine._job import Job, require_pattern, resolve
from stockpot.engine._plan import Plan, make_plan, open_inputs
from stockpot.engine._records import Records
from stockpot.engine._schedule import measuring_tasks
from stockpot.engine._sinks import CollectingSink
from stockpot.engine._stored import stored_grams
from stockpot.engine._watch import Watch
from stockpot.measure import (
    KINDS,
    Array,
    angles,
    block_of,
    coordinates,
    cosines,
    distance,
    kind_of,
    natural_order,
    pairs,
    pairwise,
)
from stockpot.measure import norms as norms_of
from stockpot.methods import Mixture, coefficients, model_stock
from stockpot.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd

LEVELS = ("row", "tensor", "block", "kind", "model")
MARKS = ("base", "mean", "model_stock", "centre")
"""Points that are no model; a model of such a name, or of another's, is told apart by its number."""


@coefficients(base="required", models=(1, None), granularity="tensor", reference="")
def survey(gram: Array) -> Mixture:
    """Nothing is mixed."""
    return Mixture(np.zeros(gram.shape[:-1]))


@dataclass(frozen=True)
class Geometry:
    """Inner products of task vectors for each group of tensors, and the numbers that follow from them.

    ``grams``: float64, shape ``(G, N+1, N+1)``: inner products of (w0, d_1 .. d_N) for G groups; with a centre, its
    task vector comes last. Groups are rows, tensors, blocks, kinds or the model, by ``granularity``; coarser ones are
    sums of finer ones. All properties are arrays over groups, angles in radians, distances in the weights' own unit.

    >>> import stockpot, tempfile, torch, safetensors.torch
    >>> folder = tempfile.mkdtemp()
    >>> for name, value in {"base": [0.0, 0.0], "a": [1.0, 0.0], "b": [1.0, 1.0]}.items():
    ...     safetensors.torch.save_file({"w": torch.tensor(value)}, f"{folder}/{name}.safetensors")
    >>> files = [f"{folder}/{name}.safetensors" for name in ("a", "b")]
    >>> shape = stockpot.geometry(base=f"{folder}/base.safetensors", models=files)
    >>> shape.norms.round(4).tolist(), float(np.degrees(shape.angles[0, 0]).round(6))
    ([[1.0, 1.4142]], 45.0)
    """

    base: str
    models: tuple[str, ...]
    centre: str | None
    granularity: str
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    blocks: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    elements: tuple[int, ...]
    grams: Array = field(repr=False)
    warnings: tuple[str, ...] = ()

    @cached_property
    def own(self) -> Array:
        """The Grams without the centre, shape ``(G, N+1, N+1)``."""
        size = len(self.models) + 1
        return self.grams[:, :size, :size]

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The models (from 0) that each column of ``cosines``, ``angles`` and ``distances`` compares."""
        return pairs(len(self.models))

    @cached_property
    def base_norms(self) -> Array:
        """|w0|, shape ``(G,)``."""
        return np.asarray(np.sqrt(self.own[:, 0, 0]))

    @cached_property
    def norms(self) -> Array:
        """|d_i|, shape ``(G, N)``."""
        return norms_of(self.own)

    @cached_property
    def relative_norms(self) -> Array:
        """|d_i| / |w0|, shape ``(G, N)``; Inf or NaN where the base is zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.norms / self.base_norms[:, None])

    @cached_property
    def norm_spread(self) -> Array:
        """How thick the shell is: (max |d_i| - min |d_i|) / mean |d_i|, shape ``(G,)``; NaN where nothing moved."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.ptp(self.norms, axis=1) / self.norms.mean(axis=1))

    @cached_property
    def angle_spread(self) -> Array:
        """Greatest less smallest angle over the pairs in radians, shape ``(G,)``; NaN for a single model."""
        if not self.pairs:
            return np.full(len(self.names), np.nan)
        return np.asarray(np.fmax.reduce(self.angles, axis=1) - np.fmin.reduce(self.angles, axis=1))

    @cached_property
    def cosines(self) -> Array:
        """cos(d_i, d_j), shape ``(G, N(N-1)/2)``; 0 where one of them is zero."""
        return pairwise(cosines(self.own))

    @cached_property
    def angles(self) -> Array:
        """Angles between d_i and d_j in radians, shape ``(G, N(N-1)/2)``; NaN where one of them is zero."""
        still = self.norms == 0
        without = np.stack([still[:, i] | still[:, j] for i, j in self.pairs], axis=-1) if self.pairs else False
        return np.where(without, np.nan, angles(self.own))

    @cached_property
    def t(self) -> Array:
        """Model Stock's ratio, shape ``(G,)``; NaN for a single model and where nothing moved."""
        return self._ratio("equal")

    @cached_property
    def t_free(self) -> Array:
        """The same without the assumption of equal norms (``norms=free``)."""
        return self._ratio("free")

    def _ratio(self, norms: str) -> Array:
        found = self._stock(norms).ratio if len(self.models) > 1 else None
        return np.full(len(self.names), np.nan) if found is None else np.asarray(found)

    def _stock(self, norms: str) -> Mixture:
        return model_stock(self.own, {"norms": norms})

    @cached_property
    def distances(self) -> Array:
        """|w_i - w_j|, shape ``(G, N(N-1)/2)``."""
        unit = np.eye(len(self.models))
        found = [distance(self.own, unit[i], unit[j]) for i, j in self.pairs]
        return np.stack(found, axis=-1) if found else np.zeros((len(self.names), 0))

    @cached_property
    def points(self) -> dict[str, Array]:
        """Weights over the task vectors, shape ``(G, N)`` or ``(G, N+1)`` with a centre, of every marked point."""
        size, groups = self.grams.shape[-1] - 1, len(self.names)
        found = {"base": np.zeros((groups, size))}
        for number, model in enumerate(self.models):
            name = f"{model} ({number + 1})" if model in found or model in MARKS else model
            found[name] = np.tile(np.eye(size)[number], (groups, 1))
        mean = np.zeros((groups, size))
        mean[:, : len(self.models)] = 1.0 / len(self.models)
        found["mean"] = mean
        if len(self.models) > 1:
            merged = np.zeros((groups, size))
            merged[:, : len(self.models)] = self._stock("equal").weights[:, 1:]
            found["model_stock"] = merged
        if self.centre is not None:
            found["centre"] = np.tile(np.eye(size)[-1], (groups, 1))
        return found

    def distance(self, one: str, other: str) -> Array:
        """Distance of two marked points (``base``, a model, ``mean``, ``model_stock``, ``centre``), shape ``(G,)``."""
        for name in (one, other):
            if name not in self.points:
                raise errors.unknown_name("point", name, tuple(self.points))
        return distance(self.grams, self.points[one], self.points[other])

    def coordinates(self, group: int = 0, dimensions: int = 2) -> tuple[dict[str, Array], Array]:
        """Principal coordinates of all marked points in one group, and each axis's share of their variance."""
        places, shares = coordinates(
            self.grams[group], np.stack([point[group] for point in self.points.values()]), dimensions
        )
        return dict(zip(self.points, places, strict=True)), shares

    def by(self, granularity: str) -> Geometry:
        """The same in coarser groups: ``tensor``, ``block``, ``kind`` or ``model``."""
        if granularity not in LEVELS or LEVELS.index(granularity) < LEVELS.index(self.granularity):
            raise errors.unknown_name("granularity", granularity, LEVELS[LEVELS.index(self.granularity) :])
        if granularity == self.granularity:
            return self
        members: dict[str, list[int]] = {}
        for number in range(len(self.names)):
            key = {
                "tensor": self.names[number].rpartition("[")[0] or self.names[number],
                "block": self.blocks[number],
                "kind": self.kinds[number],
                "model": "model",
            }[granularity]
            members.setdefault(key, []).append(number)

        def shared(values: Sequence[str], own: Sequence[int]) -> str:
            return values[own[0]] if len({values[number] for number in own}) == 1 else "mixed"

        lists = list(members.values())
        return replace(
            self,
            granularity=granularity,
            names=tuple(members),
            kinds=tuple(shared(self.kinds, own) for own in lists),
            blocks=tuple(shared(self.blocks, own) for own in lists),
            shapes=tuple(self.shapes[own[0]] if len(own) == 1 else () for own in lists),
            elements=tuple(sum(self.elements[number] for number in own) for own in lists),
            grams=np.stack([self.grams[own].sum(axis=0) for own in lists])
            if lists
            else np.zeros((0, *self.grams.shape[1:])),
        )

    def data(self) -> dict[str, object]:
        """Plain values, for ``--json``; what is not finite is null."""
        total = self.by("model")
        return {
            "base": self.base,
            "models": list(self.models),
            "centre": self.centre,
            "granularity": self.granularity,
            "pairs": [f"{i}{j}" if len(self.models) <= 10 else f"{i}-{j}" for i, j in self.pairs],
            "groups": dict(zip(self.names, self._entries(), strict=True)),
            "total": next(iter(total._entries()), {}),
            "map": total._map() if total.names else {},
        }

    def _map(self) -> dict[str, object]:
        """Principal coordinates of every marked point, and each axis's share."""
        places, shares = self.coordinates(0)
        return {"points": {name: _plain(place) for name, place in places.items()}, "shares": _plain(shares)}

    def _entries(self) -> Iterator[dict[str, object]]:
        """Of every group, all numbers as plain values."""
        columns = {
            "base_norm": self.base_norms,
            "norms": self.norms,
            "relative_norms": self.relative_norms,
            "cosines": self.cosines,
            "angles_degrees": np.degrees(self.angles),
            "distances": self.distances,
            "norm_spread": self.norm_spread,
            "angle_spread_degrees": np.degrees(self.angle_spread),
            "t": self.t,
            "t_free": self.t_free,
        }
        plain = {name: _plain(values) for name, values in columns.items()}
        to = {goal: {name: _plain(one) for name, one in found.items()} for goal, found in self._distances_to.items()}
        for number in range(len(self.names)):
            yield {
                "kind": self.kinds[number],
                "block": self.blocks[number],
                "shape": list(self.shapes[number]),
                "elements": self.elements[number],
                **{name: values[number] for name, values in plain.items()},
                "to": {goal: {name: one[number] for name, one in found.items()} for goal, found in to.items()},
            }

    @cached_property
    def _distances_to(self) -> dict[str, dict[str, Array]]:
        goals = [name for name in ("mean", "model_stock", "centre") if name in self.points]
        return {goal: {name: self.distance(name, goal) for name in self.points if name != goal} for goal in goals}

    def table(self) -> dict[str, list[object]]:
        """Columns of one row for each group: the same numbers, flat."""
        columns: dict[str, list[object]] = {
            "name": list(self.names),
            "kind": list(self.kinds),
            "block": list(self.blocks),
            "shape": ["x".join(map(str, shape)) for shape in self.shapes],
            "elements": list(self.elements),
            "base_norm": self.base_norms.tolist(),
        }
        for number in range(len(self.models)):
            columns[f"norm_{number}"] = self.norms[:, number].tolist()
        for column, (i, j) in enumerate(self.pairs):
            columns[f"cosine_{i}_{j}"] = self.cosines[:, column].tolist()
            columns[f"angle_degrees_{i}_{j}"] = np.degrees(self.angles[:, column]).tolist()
        columns["norm_spread"] = self.norm_spread.tolist()
        columns["angle_spread_degrees"] = np.degrees(self.angle_spread).tolist()
        columns["t"] = self.t.tolist()
        columns["t_free"] = self.t_free.tolist()
        return columns

    def csv(self) -> str:
        """``table`` as CSV with a heading; numbers in full, what is not a number left empty; names printable."""
        columns = self.table()
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        for line in zip(*columns.values(), strict=True):
            writer.writerow(map(_cell, line))
        return out.getvalue()

    def to_pandas(self) -> pd.DataFrame:
        """``table`` as a DataFrame, indexed by name. Needs pandas."""
        try:
            import pandas as pd
        except ImportError:
            raise errors.MissingExtraError("pandas", "report") from None
        return pd.DataFrame(self.table()).set_index("name")


def _cell(value: object) -> object:
    if isinstance(value, str):
        return errors.printable(value)
    return "" if isinstance(value, float) and math.isnan(value) else value


def _plain(values: Array) -> list[Any]:
    """Lists of numbers for JSON; what is not finite is None."""
    if np.isfinite(values).all():
        return list(values.tolist())
    found = values.astype(object)
    found[~np.isfinite(values)] = None
    return list(found.tolist())


def measure_geometry(
    recipe: Recipe,
    *,
    centre: str | None,
    granularity: str,
    kinds: Mapping[str, str],
    memory: int,
    workers: int | None,
    device: str,
    stored: str | None = None,
    opened: Mapping[str, Source] | None = None,
    progress: Progress | None = None,
) -> Geometry:
    """Read every input once, or the inner products that a merge of the same inputs wrote (``stored``).

    ``opened``: inputs that are open already, by their names in the recipe.

    All the rest is arithmetic on small matrices.
    """
    if granularity not in LEVELS:
        raise errors.unknown_name("granularity", granularity, LEVELS)
    for pattern, kind in kinds.items():
        require_pattern("--kind", pattern)
        if kind not in KINDS:
            raise errors.unknown_name("kind", kind, KINDS)
    block_regex = recipe.parameters.get("block_regex")
    finest = "row" if granularity == "row" else "tensor"
    job: Job = resolve(recipe.model_copy(update={"granularity": finest}), method=survey)
    plan = make_plan(job, open_inputs(job, opened), Path("geometry"), memory=memory, workers=workers, device=device)
    if not plan.groups:
        raise errors.AlignmentError(
            "no tensor is common to the base and the models", expected="names and shapes that agree",
            got=f"{len(plan.slots)} tensors, none of them in all", remedy="--rename changes names of inputs",
        )  # fmt: skip
    _check_quick("--kind", kinds, plan)
    _check_quick("block_regex", [block_regex] if isinstance(block_regex, str) else [], plan)
    plan = fetched(plan, side_files=False)
    sink = CollectingSink()
    sink.found, why = stored_grams(stored, plan) if stored is not None else ({}, "")
    if stored is not None and finest == "row":
        sink.found, why = {}, "rows were asked for"
    if not sink.found:
        execute(Run(plan, measuring_tasks(plan), sink, Records(), only_measure=True), progress)
    found = _geometry(plan, sink, centre, finest, kinds, block_regex if isinstance(block_regex, str) else None)
    if why:
        found = replace(found, warnings=(*found.warnings, f"{stored} was not used: {why}; the inputs were read"))
    return found.by(granularity)


def _check_quick(option: str, patterns: Iterable[str], plan: Plan) -> None:
    watch = Watch(option)
    for pattern in patterns:
        for slot in plan.slots:
            watch.search(pattern, slot.name)


def _geometry(
    plan: Plan, sink: CollectingSink, centre: str | None, finest: str, kinds: Mapping[str, str], block_regex: str | None
) -> Geometry:
    groups = sorted(plan.groups, key=lambda group: natural_order(group.name))
    slots = [plan.slots[group.slots[0]] for group in groups]
    grams = [sink.of(group) for group in groups]
    size = len(plan.job.models) + 1
    entries: list[tuple[str, Slot, tuple[int, ...]]] = []
    for slot, gram in zip(slots, grams, strict=True):
        if finest == "row" and len(slot.shape) > 1:
            entries += [(f"{slot.name}[{row}]", slot, slot.shape[1:]) for row in range(len(gram))]
        else:
            entries.append((slot.name, slot, slot.shape))
    models = plan.job.models[:-1] if centre is not None else plan.job.models
    return Geometry(
        plan.job.base or "",
        tuple(models),
        centre,
        finest,
        tuple(name for name, _, _ in entries),
        tuple(kind_of(slot.name, slot.shape, kinds) for _, slot, _ in entries),
        tuple(block_of(slot.name, block_regex) for _, slot, _ in entries),
        tuple(shape for _, _, shape in entries),
        tuple(count(shape) for _, _, shape in entries),
        np.concatenate(grams) if grams else np.zeros((0, size, size)),
        plan.warnings,
    )
