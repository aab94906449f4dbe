"""Replicas that train at the same time: one for each rank, or for each group of ranks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn, optim

from stockpot import engine, errors
from stockpot.adapters import open_source
from stockpot.checkpoint import Source
from stockpot.engine import MemorySource
from stockpot.measure import group_of
from stockpot.recipe import parse_size
from stockpot.train._exchange import ALIGNMENT, Cut, Exchange
from stockpot.train._merging import Merge, Merger, Options
from stockpot.train._optimizers import AfterMerge
from stockpot.train._schedule import Unit
from stockpot.train._weights import Part, Weights, is_finite, local, parts, trained

T = TypeVar("T")


class SideBySide:
    """N replicas at once. Each rank calls the same things at the same steps; a merge is a meeting of all.

    ``replicas``: the ranks that hold the same part of different replicas; all ranks by default: one whole replica each.
    For replicas that are sharded over ranks (FSDP2) or replicated (DDP), give the groups of a mesh::

        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard"))
        fully_shard(model, mesh=mesh["shard"])
        SideBySide(model, optimizer, replicas=mesh.get_group("replica"), shards=mesh.get_group("shard"))

    ``shards``: the ranks over which one replica is sharded; None where each rank holds it whole, DDP included.

    No rank ever holds a tensor of another: slices of all replicas are exchanged in storage dtype, inner products are
    summed in float64 in the order of ranks, merged slices go back; the bytes of one all-reduce. All ranks end with the
    same bits. Cost in memory for each rank: its slice of the anchor; for each ``batch`` of tensors (or the largest
    tensor; blocks or the model where those share a ratio) a copy; and buffers of 16 MiB.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer | Sequence[optim.Optimizer] = (),
        *,
        replicas: dist.ProcessGroup | None = None,
        shards: dist.ProcessGroup | None = None,
        batch: str | int = "64MiB",
    ) -> None:
        if not dist.is_initialized():
            raise errors.UsageError(
                "replicas side by side need torch.distributed", expected="init_process_group and torchrun",
                remedy="replicas of one process are trained in turn: InTurn",
            )  # fmt: skip
        self.model = model
        self._optimizers = [optimizer] if isinstance(optimizer, optim.Optimizer) else list(optimizer)
        self._exchange = Exchange(replicas)
        self._shards = None if shards is None else Exchange(shards)
        self._everyone = Exchange(None)
        self.count, self.current = self._exchange.size, self._exchange.rank
        if self.count < 2:
            raise errors.ParameterError(
                "Model Stock needs replicas to compare", expected="at least 2 ranks", got=self.count
            )
        self._batch_bytes = parse_size(batch)
        self._anchor: Weights = {}
        self._options = Options()

    def weights(self) -> Weights:
        """This rank's part of its replica: the model's own tensors."""
        return trained(self.model)

    def begin(self, anchor: Mapping[str, Tensor] | str | Path | None, options: Options) -> None:
        """Compare all ranks, and keep this rank's slice of the anchor. Every rank raises what one has found."""
        self._options = options
        own = parts(self.model)
        self._compare(own)
        self._anchor = self._agree(lambda: self._slice_of(anchor, own))
        if not isinstance(anchor, (str, Path)):
            self._compare_anchors(self.weights() if anchor is None else anchor)
        for batch in self._batches(own):
            self._agree(functools.partial(self._check, batch, own))

    def next(self) -> bool:
        """All replicas reach a merge at the same time."""
        return True

    def merge(self, at: int, unit: Unit, optimizer_state: AfterMerge) -> Merge:
        """Meet, merge, and go on from the merged weights."""
        own = parts(self.model)
        self._agree(lambda: self._require_finite(own))
        found: list[engine.Geometry] = []
        for batch in self._batches(own):
            tensors = [own[name].tensor for name in batch]
            cuts = [self._cut(own[name]) for name in batch]
            slices = [
                {name: self._shaped(own[name], part) for name, part in zip(batch, replica, strict=True)}
                for replica in self._exchange.slices(tensors, cuts)
            ]
            merger = self._merger(batch, own)
            sources = [_source({name: one[name] for name in merger.anchor.tensors}) for one in slices]
            # Of small tensors this rank may have no slice at all.
            geometry = self._summed(merger.measure(sources) if merger.anchor.tensors else None, batch, own)
            found.append(geometry)
            merged = {**slices[0], **(merger.combine(sources, geometry) if merger.anchor.tensors else {})}
            with torch.no_grad():
                self._exchange.gather([merged[name].reshape(-1) for name in batch], cuts, tensors)
        self._share_integers(own)
        self._meet_optimizers(optimizer_state)
        geometry = _together(found)
        return Merge(at, unit, self._options.ratios(geometry), geometry)

    def state_dict(self) -> dict[str, Any]:
        """This rank's: its slice of the anchor."""
        return {"ranks": [self._everyone.rank, self._everyone.size, self.count], "anchor": self._anchor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, on the same rank of as many."""
        own = [self._everyone.rank, self._everyone.size, self.count]
        self._agree(lambda: _require_same_ranks(list(state["ranks"]), own))
        self._anchor = {name: tensor.clone() for name, tensor in state["anchor"].items()}

    def _agree(self, work: Callable[[], T]) -> T:
        """Work that may fail on some ranks: then all raise, and none waits for the others."""
        problem: errors.StockpotError | None = None
        done: list[T] = []
        try:
            done.append(work())
        except errors.StockpotError as error:
            problem = error
        for rank, told in enumerate(self._everyone.tell(problem)):
            if told is None:
                continue
            if problem is not None:
                raise problem
            raise type(told)(
                f"on rank {rank}: {told.what}", tensor=told.tensor, file=told.file, expected=told.expected,
                got=told.got, remedy=told.remedy,
            )  # fmt: skip
        return done[0]

    def _compare(self, own: Mapping[str, Part]) -> None:
        """Names, dtypes and shapes of all ranks; options, too. All ranks raise alike."""
        mine = {name: (str(part.tensor.dtype), part.shape) for name, part in own.items()}
        told = self._everyone.tell((mine, repr(self._options)))
        first, options = told[0]
        for rank, (other, others_options) in enumerate(told):
            for name in sorted({*first, *other}):
                if first.get(name) != other.get(name):
                    raise errors.MismatchError(
                        f"the replicas differ: rank {rank} from rank 0", tensor=name,
                        expected=_words(first.get(name)), got=_words(other.get(name)),
                    )  # fmt: skip
            if options != others_options:
                raise errors.ParameterError(
                    f"rank {rank} was given other options than rank 0", expected=options, got=others_options
                )

    def _check(self, batch: Sequence[str], own: Mapping[str, Part]) -> None:
        """Whether a merge of such slices could be planned."""
        merger = self._merger(batch, own)
        if merger.anchor.tensors:
            merger.check([merger.anchor] * self.count)

    def _compare_anchors(self, anchor: Mapping[str, Tensor]) -> None:
        """Slices come from every rank's: they must be slices of one and the same. All ranks raise alike."""
        digests = self._exchange.tell(engine.memory_digest(MemorySource(anchor, "anchor")))
        differ = [number for number, digest in enumerate(digests) if digest != digests[0]]
        for told in self._everyone.tell(differ):
            if told:
                raise errors.ParameterError(
                    "the replicas begin with different weights, so that none of them is the anchor of all",
                    got=f"replica {told[0]} differs from replica 0",
                    remedy="load the pre-trained weights on every rank, or give them as anchor=",
                )

    def _slice_of(self, anchor: Mapping[str, Tensor] | str | Path | None, own: Mapping[str, Part]) -> Weights:
        """This rank's slices of the anchor: of the model's own weights, of whole tensors, or read from a checkpoint."""
        found: Weights = {}
        source: Source | None = None
        if isinstance(anchor, (str, Path)):
            source = open_source(anchor).fetched(side_files=False)
        elif anchor is not None:
            source = MemorySource({name: tensor for name, tensor in anchor.items() if name in own}, "anchor")
        for name, part in own.items():
            if not part.tensor.is_floating_point():
                continue
            start, stop = self._cut(part).bounds(self._exchange.rank)
            if source is None:
                flat = part.tensor.reshape(-1)[start:stop].to("cpu", copy=True)
            else:
                flat = part.read(source, name, start, stop)
            found[name] = self._shaped(part, flat)
        if source is not None:
            source.close()
        return found

    def _require_finite(self, own: Mapping[str, Part]) -> None:
        for name, part in own.items():
            if part.tensor.is_floating_point() and not is_finite(part.tensor):
                raise errors.NonFiniteError(
                    "a replica is not finite", tensor=name, file=f"replica {self._exchange.rank}",
                    remedy="nothing was merged; go on from a checkpoint from before",
                )  # fmt: skip

    def _merger(self, batch: Sequence[str], own: Mapping[str, Part]) -> Merger:
        """Of what this rank has of a batch."""
        anchor = _source({name: self._anchor[name] for name in batch if self._anchor[name].numel()})
        return Merger(anchor, replace(self._options, granularity=self._level(own[batch[0]])))

    def _cut(self, part: Part) -> Cut:
        unit = max(math.prod(part.shape[1:]), 1) if self._level(part) == "row" else ALIGNMENT
        return Cut.of(part.tensor.numel(), unit, self.count)

    def _level(self, part: Part) -> str:
        """What shares a ratio. A vector is one row, and is cut like any tensor."""
        level = self._options.granularity
        return "tensor" if level == "row" and len(part.shape) < 2 else level

    def _shaped(self, part: Part, flat: Tensor) -> Tensor:
        """Slices are flat; those of whole rows are matrices."""
        return flat.view(-1, *part.shape[1:]) if self._level(part) == "row" else flat

    def _batches(self, own: Mapping[str, Part]) -> Iterator[list[str]]:
        """Names of floating tensors that are merged together: those of one group always are."""
        groups: dict[tuple[str, str], list[str]] = {}
        for name, part in own.items():
            if part.tensor.is_floating_point():
                level = self._level(part)
                groups.setdefault((level, group_of(name, level, self._options.block_regex)), []).append(name)
        held: list[str] = []
        room = most = self._batch_bytes
        kind = ""
        for (level, _), names in sorted(groups.items(), key=lambda group: group[0][0]):
            size = sum(math.prod(own[name].shape) * own[name].tensor.itemsize for name in names)
            if held and (size > room or level != kind):
                yield held
                held, room = [], most
            held, kind, room = held + names, level, room - size
        if held:
            yield held

    def _summed(
        self, geometry: engine.Geometry | None, batch: Sequence[str], own: Mapping[str, Part]
    ) -> engine.Geometry:
        """Inner products over all slices and shards, in the order of ranks; forms of the whole tensors."""
        grams = torch.zeros(len(batch), self.count + 1, self.count + 1, dtype=torch.float64)
        if geometry is not None:
            for name, gram in zip(geometry.names, geometry.grams, strict=True):
                grams[batch.index(name)] = torch.from_numpy(gram)
        grams = self._exchange.sum_in_order(grams)
        if self._shards is not None:
            grams = self._shards.sum_in_order(grams)
        by_name = dict(zip(batch, grams.numpy(), strict=True))
        return self._options.geometry(by_name, {name: own[name].shape for name in batch})

    def _share_integers(self, own: Mapping[str, Part]) -> None:
        """Counters are the first replica's."""
        for part in own.values():
            if not part.tensor.is_floating_point():
                part.tensor.copy_(self._exchange.from_first(part.tensor))

    def _meet_optimizers(self, how: AfterMerge) -> None:
        for optimizer in self._optimizers:
            if how == "reset":
                optimizer.state.clear()
            elif how == "average":
                for state in optimizer.state.values():
                    for value in state.values():
                        if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
                            self._average(value)

    @torch.no_grad()
    def _average(self, value: Tensor) -> None:
        here = local(value)
        here.copy_(self._exchange.sum_in_order(here.to("cpu", torch.float64)) / self.count)


def _source(slices: Mapping[str, Tensor]) -> MemorySource:
    return MemorySource(slices, "slices")


def _together(batches: Sequence[engine.Geometry]) -> engine.Geometry:
    """What the batches found, as one."""
    columns: dict[str, Any] = {
        name: tuple(one for batch in batches for one in getattr(batch, name))
        for name in ("names", "kinds", "blocks", "shapes", "elements")
    }
    return replace(batches[0], grams=np.concatenate([batch.grams for batch in batches]), **columns)


def _require_same_ranks(saved: list[int], own: list[int]) -> None:
    if saved != own:
        raise errors.ParameterError(
            "the state was saved by another rank, or by a job of another size",
            expected=f"rank {own[0]} of {own[1]}, {own[2]} replicas",
            got=f"rank {saved[0]} of {saved[1]}, {saved[2]} replicas",
        )


def _words(form: tuple[str, tuple[int, ...]] | None) -> str:
    return "no such tensor" if form is None else f"{form[0].removeprefix('torch.')} {list(form[1])}"
