"""What workers have made, on its way into the sink: one at a time, by whichever worker finds nobody writing.

Writers of one file exclude each other in the system, which lets them spin; here the second leaves its piece to the
first and goes on computing. No thread of its own, no worker that waits while there is something to compute.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import xxhash
from numpy.typing import NDArray

from stockpot.checkpoint import nbytes
from stockpot.engine._align import Slot
from stockpot.engine._budget import STAGE_BYTES, STAGES
from stockpot.engine._device import Device, device_of
from stockpot.engine._plan import Plan
from stockpot.engine._records import Records
from stockpot.engine._sinks import Sink


class Stage:
    """Memory for a piece of output, used again and again; a larger piece brings memory of its own."""

    def __init__(self, device: Device) -> None:
        self.data = device.allocate(STAGE_BYTES)
        self.address: int = self.data.ctypes.data


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes of one tensor from ``offset`` on; of several, all their bytes one after the other."""

    slots: tuple[int, ...]
    offset: int
    data: memoryview
    stage: Stage | None


@dataclass(slots=True)
class _SlotState:
    """The digest of a tensor, taken over its bytes in order."""

    digest: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)
    next_byte: int = 0
    waiting: dict[int, bytes] = field(default_factory=dict)


class Output:
    """Pieces of tensors in any order, from several threads. ``pause`` waits a moment, or raises when all is over."""

    def __init__(self, plan: Plan, sink: Sink, records: Records, pause: Callable[[threading.Condition], None]) -> None:
        self._plan = plan
        self._sink = sink
        self._records = records
        self._pause = pause
        self._turn = threading.Condition()
        self._queue: deque[_Piece] = deque()
        self._is_writing = False
        self._free: list[Stage] = []
        self._made = 0
        self._device = device_of(plan.budget.device, 0)
        self._most = STAGES * plan.budget.workers
        self._slots: dict[int, _SlotState] = {}

    def stage(self) -> Stage:
        """Memory for a piece, given back by ``put``."""
        with self._turn:
            while not self._free and self._made >= self._most:
                self._pause(self._turn)
            if self._free:
                return self._free.pop()
            self._made += 1
        return Stage(self._device)

    def room(self, number: int, offset: int, size: int) -> NDArray[np.uint8] | None:
        """Where bytes of a tensor are to lie, if they can be made there; ``made`` follows."""
        return self._sink.room(self._plan.slots[number], offset, size) if size else None

    def made(self, number: int) -> None:
        """Bytes were made in their ``room``."""
        self._sink.finish(self._plan.slots[number], "")

    def give_back(self, stage: Stage) -> None:
        """Memory that nothing was put from."""
        with self._turn:
            self._free.append(stage)
            self._turn.notify()

    def put(self, slots: tuple[int, ...], offset: int, data: memoryview, stage: Stage | None) -> None:
        """Bytes of a tensor, or all bytes of several, which belong to this object from now on."""
        if self._sink.in_memory:
            self._put_in_memory(_Piece(slots, offset, data, stage))
            return
        with self._turn:
            while len(self._queue) >= self._most:
                self._pause(self._turn)
            self._queue.append(_Piece(slots, offset, data, stage))
            if self._is_writing:
                return
            self._is_writing = True
        while (piece := self._next()) is not None:
            self._write(piece)
            if piece.stage is not None:
                self.give_back(piece.stage)

    def _put_in_memory(self, piece: _Piece) -> None:
        """Each worker by itself."""
        slots = [self._plan.slots[number] for number in piece.slots]
        if len(slots) > 1:
            self._sink.write_many(slots, piece.data)
        elif len(piece.data):
            self._sink.write(slots[0], piece.offset, piece.data)
        for slot in slots:
            self._sink.finish(slot, "")
        if piece.stage is not None:
            self.give_back(piece.stage)

    def _next(self) -> _Piece | None:
        with self._turn:
            if self._queue:
                return self._queue.popleft()
            self._is_writing = False
            return None

    def _write(self, piece: _Piece) -> None:
        """One writer at a time gets here, so that nothing below needs a lock."""
        if len(piece.slots) > 1:
            self._write_many(piece)
            return
        number = piece.slots[0]
        slot = self._plan.slots[number]
        if len(piece.data):
            self._sink.write(slot, piece.offset, piece.data)
        state = self._slots.setdefault(number, _SlotState())
        if state.next_byte != piece.offset:
            state.waiting[piece.offset] = bytes(piece.data)
            return
        part: memoryview | bytes | None = piece.data
        while part is not None:
            state.digest.update(part)
            state.next_byte += len(part)
            part = state.waiting.pop(state.next_byte, None)
        if state.next_byte == nbytes(slot.dtype, slot.shape):
            self._finish(slot, state.digest.hexdigest())
            del self._slots[number]

    def _write_many(self, piece: _Piece) -> None:
        slots = [self._plan.slots[number] for number in piece.slots]
        self._sink.write_many(slots, piece.data)
        begin = 0
        for slot in slots:
            size = nbytes(slot.dtype, slot.shape)
            self._finish(slot, xxhash.xxh3_128_hexdigest(piece.data[begin : begin + size]))
            begin += size

    def _finish(self, slot: Slot, digest: str) -> None:
        self._records.add_digest(slot.name, digest)
        self._sink.finish(slot, digest)
