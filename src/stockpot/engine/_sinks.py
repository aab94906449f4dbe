"""Where results go: files under way, memory, or nowhere but their digests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stockpot.checkpoint import OutFile, Spec, Staging, nbytes
from stockpot.engine._align import Slot
from stockpot.engine._plan import Group, Plan
from stockpot.measure import Array, pack, unpack


class Sink(Protocol):
    """Takes what the loop makes. Calls may come from several threads.

    ``in_memory``: writers need not take turns, and nobody asks for digests.
    """

    in_memory: bool

    def room(self, slot: Slot, offset: int, size: int) -> NDArray[np.uint8] | None:
        """Where these bytes are to lie, to be made there; None where they must be written."""

    def write(self, slot: Slot, offset: int, data: memoryview) -> None:
        """Bytes of a tensor, from its byte ``offset`` on."""

    def write_many(self, slots: Sequence[Slot], data: memoryview) -> None:
        """All bytes of tensors, one after the other."""

    def finish(self, slot: Slot, digest: str) -> None:
        """All bytes of a tensor were written."""

    def store_gram(self, group: Group, first_row: int, gram: Array) -> None:
        """Inner products of a group, or of some of its rows."""

    def store_grams(self, groups: Sequence[Group], grams: Array) -> None:
        """All inner products of groups, one matrix for each."""

    def finish_gram(self, group: Group) -> None:
        """All inner products of a group were stored."""

    def store_beside(self, name: str, offset: int, data: memoryview) -> None:
        """Bytes of a tensor of the file beside the output, from its byte ``offset`` on."""


class NullSink:
    """Keeps digests only (they are in the records), for ``verify --recompute``."""

    in_memory = False

    def room(self, slot: Slot, offset: int, size: int) -> NDArray[np.uint8] | None:
        """Nowhere."""
        return None

    def write(self, slot: Slot, offset: int, data: memoryview) -> None:
        """Forget the bytes."""

    def write_many(self, slots: Sequence[Slot], data: memoryview) -> None:
        """Forget the bytes."""

    def finish(self, slot: Slot, digest: str) -> None:
        """Nothing to do."""

    def store_gram(self, group: Group, first_row: int, gram: Array) -> None:
        """Forget the inner products."""

    def store_grams(self, groups: Sequence[Group], grams: Array) -> None:
        """Forget the inner products."""

    def finish_gram(self, group: Group) -> None:
        """Nothing to do."""

    def store_beside(self, name: str, offset: int, data: memoryview) -> None:
        """Forget the bytes."""


class CollectingSink(NullSink):
    """Keeps the inner products in memory."""

    def __init__(self) -> None:
        self.found: dict[str, Array] = {}
        self.rows: dict[str, dict[int, Array]] = {}

    def store_gram(self, group: Group, first_row: int, gram: Array) -> None:
        if group.rows:
            self.rows.setdefault(group.name, {})[first_row] = gram
        else:
            self.found[group.name] = gram

    def store_grams(self, groups: Sequence[Group], grams: Array) -> None:
        self.found.update(zip((group.name for group in groups), grams, strict=True))

    def of(self, group: Group) -> Array:
        """Shape (rows or 1, N+1, N+1)."""
        if not group.rows:
            return self.found[group.name][None]
        parts = self.rows[group.name]
        return np.concatenate([parts[first] for first in sorted(parts)])


class ComparingSink(NullSink):
    """Compares what is made for the file beside an output with what is there."""

    def __init__(self, folder: Path, beside: OutFile | None) -> None:
        self._folder = folder
        self._beside = beside
        self.differing: dict[str, None] = {}

    def store_beside(self, name: str, offset: int, data: memoryview) -> None:
        if self._beside is None:
            return
        with (self._folder / self._beside.name).open("rb") as file:
            file.seek(self._beside.offsets[name] + offset)
            if file.read(len(data)) != data:
                self.differing[self._beside.name] = None


GEOMETRY = "stockpot_geometry.safetensors"


class StagingSink:
    """Writes tensors to their places in the weight files and Grams to theirs in the geometry file."""

    in_memory = False

    def __init__(
        self,
        staging: Staging,
        places: Mapping[str, tuple[str, int]],
        geometry: OutFile | None,
        beside: OutFile | None = None,
    ) -> None:
        self._beside = beside
        self._staging = staging
        self._places = places
        self._geometry = geometry

    def room(self, slot: Slot, offset: int, size: int) -> NDArray[np.uint8] | None:
        return None

    def write(self, slot: Slot, offset: int, data: memoryview) -> None:
        file, begin = self._places[slot.name]
        self._staging.write(file, begin + offset, data)

    def write_many(self, slots: Sequence[Slot], data: memoryview) -> None:
        sizes = [nbytes(slot.dtype, slot.shape) for slot in slots]
        self._write_runs([self._places[slot.name] for slot in slots], sizes, data)

    def _write_runs(self, places: Sequence[tuple[str, int]], sizes: Sequence[int], data: memoryview) -> None:
        """What lies side by side in a file is written at once."""
        begin = end = 0
        start = places[0]
        for place, size in zip(places, sizes, strict=True):
            if place != (start[0], start[1] + end - begin):
                self._staging.write(*start, data[begin:end])
                begin, start = end, place
            end += size
        self._staging.write(*start, data[begin:end])

    def finish(self, slot: Slot, digest: str) -> None:
        self._staging.finish({"tensor": slot.name, "digest": digest})

    def store_gram(self, group: Group, first_row: int, gram: Array) -> None:
        if self._geometry is None:
            return
        packed = pack(gram)
        offset = self._geometry.offsets[group.name] + first_row * packed.shape[-1] * 8
        self._staging.write(GEOMETRY, offset, memoryview(packed.tobytes()))

    def store_grams(self, groups: Sequence[Group], grams: Array) -> None:
        if self._geometry is None:
            return
        packed = pack(grams)
        places = [(GEOMETRY, self._geometry.offsets[group.name]) for group in groups]
        self._write_runs(places, [packed.shape[-1] * 8] * len(places), memoryview(packed.tobytes()))
        for group in groups:
            self._staging.finish({"gram": group.name})

    def finish_gram(self, group: Group) -> None:
        if self._geometry is not None:
            self._staging.finish({"gram": group.name})

    def store_beside(self, name: str, offset: int, data: memoryview) -> None:
        if self._beside is not None:
            self._staging.write(self._beside.name, self._beside.offsets[name] + offset, data)

    def read_gram(self, group: Group, size: int) -> Array:
        """Inner products that an earlier run stored."""
        assert self._geometry is not None
        packed_size = size * (size + 1) // 2
        shape = (group.rows, packed_size) if group.rows else (packed_size,)
        raw = self._staging.read(GEOMETRY, self._geometry.offsets[group.name], 8 * int(np.prod(shape)))
        return unpack(np.frombuffer(raw).reshape(shape), size)


def geometry_specs(plan: Plan) -> list[Spec]:
    """Names and shapes of the stored Grams: one upper triangle for each group (and row)."""
    if not plan.job.method.uses_gram:
        return []
    specs: list[Spec] = []
    for group in plan.groups:
        size = len(plan.slots[group.slots[0]].sources)
        packed = size * (size + 1) // 2
        specs.append((group.name, "F64", (group.rows, packed) if group.rows else (packed,)))
    return specs
