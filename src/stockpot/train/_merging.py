"""One merge of replicas: inner products, ratios, mixture, by the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stockpot import engine
from stockpot.checkpoint import Source, open_checkpoint
from stockpot.engine import Geometry
from stockpot.recipe import Missing, Recipe, build_recipe, parse_size
from stockpot.train._schedule import Unit
from stockpot.train._weights import copied

ANCHOR = "anchor"


@dataclass(frozen=True)
class Merge:
    """What one merge found. ``ratios``: Model Stock's t by group (tensor, block, ...), None where nothing moved.

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


class Merger:
    """Merges any replicas against one anchor, into the same memory each time: one model, whatever their number."""

    def __init__(self, anchor: Mapping[str, Tensor] | str | Path, options: Options) -> None:
        """``anchor``: the weights themselves, which are copied, or a checkpoint, which is read at each merge."""
        self.anchor: Source
        self.kept: dict[str, Tensor] | None = None
        if isinstance(anchor, (str, Path)):
            self.anchor = open_checkpoint(anchor)
        else:
            self.keep(anchor)
        self.options = options
        self._sink = engine.MemorySink()

    def keep(self, anchor: Mapping[str, Tensor]) -> None:
        """Take weights in memory as the anchor: a copy, which nothing changes."""
        self.kept = copied(anchor)
        self.anchor = engine.MemorySource(self.kept, ANCHOR)

    def digest(self) -> str:
        """Of the anchor's content. Cost: reading it once."""
        if self.kept is not None:
            return engine.memory_digest(self.anchor)
        return "+".join(engine.file_digest(file.path) for file in self.anchor.files)

    def check(self, replicas: Sequence[Source]) -> None:
        """Refuse now what a merge would refuse for names, shapes or options. Reads no weights."""
        self._plan(replicas)

    def merge(self, replicas: Sequence[Source], at: int, unit: Unit) -> tuple[dict[str, Tensor], Merge]:
        """The merged weights, in memory that the next merge writes over, and what was found.

        Cost: the replicas and the anchor are read twice (once for inner products), one model is written. A replica
        with NaN or Inf is refused before anything is written.
        """
        geometry = engine.measure_geometry(
            self._recipe("geometry", replicas),
            centre=None,
            granularity="tensor",
            kinds={},
            memory=parse_size(self.options.memory),
            workers=self.options.workers,
            device="cpu",
            opened=self._opened(replicas),
        )
        plan = self._plan(replicas)
        grams = None if self.options.granularity == "row" else _by_group(plan, geometry)
        tensors, records = engine.to_memory(plan, self._sink, grams)
        ratios = {name: record.ratio for name, record in records.groups.items()}
        return tensors, Merge(at, unit, ratios, geometry)

    def _plan(self, replicas: Sequence[Source]) -> engine.Plan:
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


def _by_group(plan: engine.Plan, geometry: Geometry) -> dict[str, Any]:
    """Sums of the tensors' inner products over each group."""
    place = {name: number for number, name in enumerate(geometry.names)}
    return {
        group.name: np.sum([geometry.grams[place[plan.slots[slot].name]] for slot in group.slots], axis=0)
        for group in plan.groups
    }
