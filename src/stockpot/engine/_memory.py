"""State dicts in memory, through the same plan and loop as files."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stockpot import errors
from stockpot.checkpoint import TORCH_NAMES, FileIdentity, Part, TensorInfo, View, nbytes
from stockpot.engine._align import Slot
from stockpot.engine._execute import Run, execute
from stockpot.engine._plan import Group, Plan
from stockpot.engine._records import Records
from stockpot.engine._schedule import make_tasks
from stockpot.engine._survey import survey
from stockpot.measure import Array

_CODES = {getattr(torch, name): code for code, name in TORCH_NAMES.items() if hasattr(torch, name)}


class MemorySource:
    """A state dict as a source; names of one storage and form are aliases of the first."""

    def __init__(self, state_dict: Mapping[str, Tensor], ref: str) -> None:
        self.ref = ref
        self.files: tuple[FileIdentity, ...] = ()
        self.roots: tuple[Path, ...] = ()
        self.parts = (Part(),)
        self.notes: tuple[str, ...] = ()
        self.folder: Path | None = None
        self.is_pickle = False
        self.working_bytes = 0
        self.commit = ""
        self.aliases: dict[str, str] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self._data: dict[str, Tensor] = {}
        self.places: dict[tuple[object, ...], str] = {}
        """Where the tensors lie: two sources with the same places are the same memory, read alike."""
        seen = self.places
        for name, tensor in state_dict.items():
            if not isinstance(tensor, Tensor) or tensor.dtype not in _CODES:
                raise errors.CheckpointError("not a dense tensor", tensor=name, file=ref, got=type(tensor).__name__)
            place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), str(tensor.device))
            if tensor.numel() and place in seen:
                self.aliases[name] = seen[place]
                continue
            seen[place] = name
            code = _CODES[tensor.dtype]
            shape = tuple(tensor.shape)
            self.tensors[name] = TensorInfo(name, code, shape, 0, 0, nbytes(code, shape))
            self._data[name] = tensor.detach()

    def read_into(self, info: TensorInfo, start: int, out: memoryview) -> None:
        """Copy bytes out of the tensor."""
        if not len(out):
            return
        flat = self._data[info.name].contiguous().flatten().view(torch.uint8)
        torch.frombuffer(out, dtype=torch.uint8).copy_(flat[start : start + len(out)])

    def view(self, info: TensorInfo, start: int, size: int) -> View | None:
        """The tensor's own memory, where it is dense and on the CPU."""
        tensor = self._data[info.name]
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            return None
        data = tensor.reshape(-1).view(torch.uint8).numpy()[start : start + size]
        return View(data, tensor.data_ptr() + start)

    def close(self) -> None:
        """Nothing is open."""

    def downloads(self, *, side_files: bool) -> dict[str, int]:
        """Nothing."""
        return {}

    def fetched(self, *, side_files: bool = True) -> MemorySource:
        """It is here."""
        return self

    def drop_views(self, infos: Sequence[TensorInfo]) -> None:
        """The memory is its owner's."""


class MemorySink:
    """Collects the output as tensors, and inner products. Used again, it fills tensors of the right form anew."""

    in_memory = True

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.grams: dict[str, Array] = {}
        self._bytes: dict[str, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()

    def room(self, slot: Slot, offset: int, size: int) -> NDArray[np.uint8] | None:
        """The tensor's own memory, made at its first bytes."""
        return self._bytes_of(slot)[offset : offset + size]

    def write(self, slot: Slot, offset: int, data: memoryview) -> None:
        """Into the tensor's memory. By numpy: torch would call threads of its own."""
        room = self.room(slot, offset, len(data))
        assert room is not None
        room[:] = np.frombuffer(data, dtype=np.uint8)

    def write_many(self, slots: Sequence[Slot], data: memoryview) -> None:
        """Each into its own."""
        begin = 0
        for slot in slots:
            size = nbytes(slot.dtype, slot.shape)
            self.write(slot, 0, data[begin : begin + size])
            begin += size

    def finish(self, slot: Slot, digest: str) -> None:
        """An empty tensor has no bytes, but is there."""
        self._bytes_of(slot)

    def _bytes_of(self, slot: Slot) -> NDArray[np.uint8]:
        with self._lock:
            dtype, tensor = getattr(torch, TORCH_NAMES[slot.dtype]), self.tensors.get(slot.name)
            if tensor is None or tensor.dtype != dtype or tensor.shape != slot.shape:
                self.tensors[slot.name] = tensor = torch.empty(slot.shape, dtype=dtype)
                self._bytes[slot.name] = tensor.view(-1).view(torch.uint8).numpy()
            return self._bytes[slot.name]

    def store_gram(self, group: Group, first_row: int, gram: Array) -> None:
        """Kept, but for rows: those are many."""
        if not group.rows:
            self.grams[group.name] = gram

    def store_grams(self, groups: Sequence[Group], grams: Array) -> None:
        """Kept."""
        self.grams.update(zip((group.name for group in groups), grams, strict=True))

    def finish_gram(self, group: Group) -> None:
        """Nothing to do."""

    def store_beside(self, name: str, offset: int, data: memoryview) -> None:
        """What lies beside an output is for files."""


def to_memory(
    plan: Plan, sink: MemorySink | None = None, grams: Mapping[str, Array] | None = None
) -> tuple[dict[str, Tensor], Records]:
    """Carry out a plan in memory: name -> tensor, in the template's order; aliases are the same tensor.

    Tensors that ``sink`` has from before are written over where they fit: a second result then costs no memory.
    ``grams``: inner products by group that are known already, and are not measured again.
    """
    sink, records, known = sink or MemorySink(), Records(), grams or {}
    run = Run(plan, make_tasks(plan, frozenset(), frozenset(known)), sink, records)
    survey(run, sink)
    for number, group in enumerate(plan.groups):
        if group.name in known:
            run.preset(number, known[group.name])
    execute(run)
    result = {slot.name: sink.tensors[slot.name] for slot in plan.slots}
    result.update({alias: result[name] for alias, name in plan.alignment.aliases.items()})
    return result, records
