"""One merge of replicas: inner products, ratios, mixture, by the engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stockpot import engine
from stockpot.checkpoint import Source
from stockpot.engine import Geometry
from stockpot.measure import Array, block_of, group_of, kind_of, natural_order
from stockpot.methods import get_method
from stockpot.recipe import Missing, Recipe, build_recipe, parse_size
from stockpot.train._schedule import Unit

ANCHOR = "anchor"


@dataclass(frozen=True)
class Merge:
    """What one merge found. ``ratios``: Model Stock's t by group (tensor, block, model), None where nothing moved.

    ``geometry``: norms, angles and distances of the replicas around the anchor, tensor by tensor, as ``stockpot
    geometry`` gives them.
    """

    at: int
    unit: Unit
    ratios: Mapping[str, float | None]
    geometry: Geometry = field(repr=False)

    def data(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"at": self.at, "unit": self.unit, "ratios": dict(self.ratios), "geometry": self.geometry.data()}

    def state(self) -> dict[str, Any]:
        """The same without loss, for a training checkpoint: plain values and one tensor."""
        geometry = {one.name: getattr(self.geometry, one.name) for one in fields(self.geometry)}
        geometry["grams"] = torch.from_numpy(self.geometry.grams)
        return {"at": self.at, "unit": self.unit, "ratios": dict(self.ratios), "geometry": geometry}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Merge:
        """Back from ``state``."""
        geometry = Geometry(**{**state["geometry"], "grams": state["geometry"]["grams"].numpy()})
        return cls(state["at"], state["unit"], state["ratios"], geometry)


@dataclass(frozen=True)
class Options:
    """Of the method and of the machine; as ``stockpot.merge`` takes them."""

    granularity: str = "tensor"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rename: tuple[str, ...] = ()
    missing: Missing = "error"
    memory: str | int = "64MiB"
    workers: int | None = None

    @property
    def block_regex(self) -> str | None:
        """What of a name is its block; None: our rule."""
        found = self.parameters.get("block_regex")
        return found if isinstance(found, str) else None

    def geometry(self, grams: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> Geometry:
        """Inner products of tensors, with what is known of each."""
        names = sorted(grams, key=natural_order)
        count = len(grams[names[0]]) - 1
        return Geometry(
            base=ANCHOR,
            models=tuple(f"replica {number}" for number in range(count)),
            centre=None,
            granularity="tensor",
            names=tuple(names),
            kinds=tuple(kind_of(name, shapes[name]) for name in names),
            blocks=tuple(block_of(name, self.block_regex) for name in names),
            shapes=tuple(shapes[name] for name in names),
            elements=tuple(math.prod(shapes[name]) for name in names),
            grams=np.stack([grams[name] for name in names]),
        )

    def grams(self, geometry: Geometry) -> dict[str, Array]:
        """Sums of the tensors' inner products over each group: tensors, blocks or the model."""
        found: dict[str, Array] = {}
        for name, gram in zip(geometry.names, geometry.grams, strict=True):
            group = group_of(name, self.granularity, self.block_regex)
            found[group] = found[group] + gram if group in found else gram
        return found

    def ratios(self, geometry: Geometry) -> dict[str, float | None]:
        """Model Stock's t of each group; by rows: none, they are too many."""
        if self.granularity == "row":
            return {}
        values = {name: value for name, value in self.parameters.items() if name != "block_regex"}
        grams = self.grams(geometry)
        ratios = get_method("model_stock")(np.stack(list(grams.values())), values).ratio
        assert ratios is not None
        return {group: None if np.isnan(ratio) else ratio for group, ratio in zip(grams, ratios.tolist(), strict=True)}


class Merger:
    """Merges any replicas against one anchor, into the same memory each time: one model, whatever their number."""

    def __init__(self, anchor: Source, options: Options) -> None:
        """``anchor``: what the replicas began with; it must never change."""
        self.anchor = anchor
        self.options = options
        self._sink = engine.MemorySink()
        self._planned: tuple[object, engine.Plan] | None = None

    def check(self, replicas: Sequence[Source]) -> None:
        """Refuse now what a merge would refuse for names, shapes or options. Reads no weights."""
        self._plan(replicas)

    def merge(self, replicas: Sequence[Source]) -> tuple[dict[str, Tensor], Geometry]:
        """The merged weights, in memory that the next merge writes over, and the inner products of every tensor.

        Cost: the replicas and the anchor are read once where each tensor has its own ratio and fits the memory budget,
        else twice; one model is written.
        """
        if self.options.granularity != "tensor":
            geometry = self.measure(replicas)
            return self.combine(replicas, geometry), geometry
        plan = self._plan(replicas)
        tensors, _ = engine.to_memory(plan, self._sink)
        shapes = {plan.slots[group.slots[0]].name: plan.slots[group.slots[0]].shape for group in plan.groups}
        return tensors, self.options.geometry({name: self._sink.grams[name] for name in shapes}, shapes)

    def measure(self, replicas: Sequence[Source]) -> Geometry:
        """Inner products of every tensor. Cost: the replicas and the anchor are read once; NaN and Inf are refused."""
        return engine.measure_geometry(
            self._recipe("geometry", replicas),
            centre=None,
            granularity="tensor",
            kinds={},
            memory=parse_size(self.options.memory),
            workers=self.options.workers,
            device="cpu",
            opened=self._opened(replicas),
        )

    def combine(self, replicas: Sequence[Source], geometry: Geometry) -> dict[str, Tensor]:
        """The merged weights, in memory that the next merge writes over.

        Cost: the replicas and the anchor are read once (twice by rows), one model is written.
        """
        plan = self._plan(replicas)
        grams = None if self.options.granularity == "row" else self.options.grams(geometry)
        return engine.to_memory(plan, self._sink, grams)[0]

    def _plan(self, replicas: Sequence[Source]) -> engine.Plan:
        """That of the merge before, where these are the same tensors in the same memory."""
        places = [one.places if isinstance(one, engine.MemorySource) else None for one in replicas]
        if self._planned is None or None in places or self._planned[0] != places:
            self._planned = places, self._new_plan(replicas)
        return self._planned[1]

    def _new_plan(self, replicas: Sequence[Source]) -> engine.Plan:
        job = engine.resolve(self._recipe("model_stock", replicas))
        return engine.make_plan(
            job,
            engine.open_inputs(job, self._opened(replicas)),
            Path("memory"),
            memory=parse_size(self.options.memory),
            workers=self.options.workers,
            device="cpu",
        )

    def _recipe(self, method: str, replicas: Sequence[Source]) -> Recipe:
        own = self.options
        stock = method == "model_stock"
        return build_recipe(
            method,
            base=ANCHOR,
            models=list(self._opened(replicas))[1:],
            parameters={name: value for name, value in own.parameters.items() if stock or name == "block_regex"},
            granularity=own.granularity if stock else None,
            only=own.only,
            exclude=own.exclude,
            rename=own.rename,
            missing=own.missing,
        )

    def _opened(self, replicas: Sequence[Source]) -> dict[str, Source]:
        return {ANCHOR: self.anchor} | {f"replica {number}": source for number, source in enumerate(replicas)}


def combined(maps: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """sum_i weights_i maps_i, tensor by tensor, correctly rounded; on the CPU."""
    names = [f"part {number}" for number in range(len(maps))]
    sources = {name: engine.MemorySource(own, name) for name, own in zip(names, maps, strict=True)}
    live = engine.LiveModel(sources, memory=parse_size(Options().memory), workers=None, device="cpu")
    parameters = {"weight": list(weights), "normalize": False}
    return live.become(live.plan(build_recipe("linear", base=None, models=names, parameters=parameters)))
