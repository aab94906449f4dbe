"""Slices of tensors between the ranks that hold different replicas: each rank gets one slice of all of them.

A tensor of E elements is cut into as many slices as there are replicas. To all: slice k of every replica goes to rank
k (all-to-all). Back: merged slice k goes from rank k to all (all-gather). Together the bytes of one all-reduce. Both go
in pieces, so that the buffers stay small whatever the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from stockpot import errors

ALIGNMENT = 64
"""Elements that slices are multiples of (bytes, in the buffers): no slice begins inside a vector."""
PIECE_BYTES = 16 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class Cut:
    """A tensor's slices: ``step`` elements each, the last ones fewer or none."""

    elements: int
    step: int

    @classmethod
    def of(cls, elements: int, unit: int, ranks: int) -> Cut:
        """In ``ranks`` slices of whole units (rows, or some elements)."""
        return cls(elements, max(-(-elements // (unit * ranks)), 1) * unit)

    def bounds(self, rank: int, first: int = 0, last: int | None = None) -> tuple[int, int]:
        """Elements ``first`` to ``last`` of a rank's slice, counted in the tensor."""
        end = min((rank + 1) * self.step, self.elements)
        start = min(rank * self.step + first, end)
        return start, end if last is None else min(rank * self.step + last, end)


class Exchange:
    """Collectives of one group of ranks, over memory that is used again."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        self._kept: dict[str, Tensor] = {}
        # "cpu:gloo,cuda:nccl" where init_process_group was not told a backend
        self.device = torch.device("cuda" if "nccl" in dist.get_backend_config(group) else "cpu")

    def slices(self, tensors: Sequence[Tensor], cuts: Sequence[Cut]) -> list[list[Tensor]]:
        """This rank's slice of every tensor, for each replica in the order of ranks; 1-D, on the CPU.

        They lie in memory that the next call uses again.
        """
        flat = [tensor.reshape(-1) for tensor in tensors]
        whole = [(number, 0, cut.step) for number, cut in enumerate(cuts)]
        places = _Layout.of(whole, flat, cuts, self.rank)
        room = self._buffer("slices", places.size * self.size)
        found = [[tensor.new_empty(0, device="cpu") for tensor in flat] for _ in range(self.size)]
        for rank in range(self.size):
            for (number, a, b), offset in zip(places.ranges, places.offsets, strict=True):
                found[rank][number] = _bytes_at(room, rank * places.size + offset, flat[number].dtype, b - a)
        for piece in _pieces(flat, cuts, self.size):
            layout = [_Layout.of(piece, flat, cuts, rank) for rank in range(self.size)]
            send = self._buffer("sent", sum(one.size for one in layout))
            begin = 0
            for one in layout:
                for (number, a, b), offset in zip(one.ranges, one.offsets, strict=True):
                    _bytes_at(send, begin + offset, flat[number].dtype, b - a).copy_(flat[number][a:b])
                begin += one.size
            mine = layout[self.rank]
            received = self._to_all(send, [one.size for one in layout], mine.size)
            for rank in range(self.size):
                for (number, a, b), offset in zip(mine.ranges, mine.offsets, strict=True):
                    start = a - cuts[number].bounds(self.rank)[0]
                    part = _bytes_at(received, rank * mine.size + offset, flat[number].dtype, b - a)
                    found[rank][number][start : start + b - a] = part
        return found

    def gather(self, merged: Sequence[Tensor], cuts: Sequence[Cut], out: Sequence[Tensor]) -> None:
        """All ranks' merged slices, into the tensors ``out``."""
        flat = [tensor.view(-1) for tensor in out]
        for piece in _pieces(flat, cuts, self.size):
            layout = [_Layout.of(piece, flat, cuts, rank) for rank in range(self.size)]
            most = max(one.size for one in layout)
            send = self._buffer("sent", most)
            mine = layout[self.rank]
            for (number, a, b), offset in zip(mine.ranges, mine.offsets, strict=True):
                start = a - cuts[number].bounds(self.rank)[0]
                _bytes_at(send, offset, flat[number].dtype, b - a).copy_(merged[number][start : start + b - a])
            for one, own in zip(layout, self._from_all(send), strict=True):
                for (number, a, b), offset in zip(one.ranges, one.offsets, strict=True):
                    flat[number][a:b] = _bytes_at(own, offset, flat[number].dtype, b - a)

    def sum_in_order(self, values: Tensor) -> Tensor:
        """The sum over the group, added in the order of ranks: the same bits on each."""
        total = torch.zeros_like(values)
        for one in self._from_all(values):
            total = total + one
        return total

    def tell(self, value: T) -> list[T]:
        """Each rank's value, in order."""
        found: list[Any] = [None] * self.size
        _meeting(lambda: dist.all_gather_object(found, value, group=self.group))
        return found

    def from_first(self, values: Tensor) -> Tensor:
        """What the group's first rank has."""
        return self._from_all(values)[0]

    def _buffer(self, name: str, size: int, device: torch.device | None = None) -> Tensor:
        """Memory of that many bytes, the same again each time: fresh pages cost more than the copying."""
        if name not in self._kept or self._kept[name].numel() < size:
            self._kept[name] = torch.empty(size, dtype=torch.uint8, device=device)
        return self._kept[name][:size]

    def _from_all(self, own: Tensor) -> list[Tensor]:
        """Tensors of one form from every rank, in order, until the next collective."""
        size = own.nbytes
        room = self._buffer("received", size * self.size, self.device)
        found = [room[number * size :][:size].view(own.dtype).view(own.shape) for number in range(self.size)]
        _meeting(lambda: dist.all_gather(found, own.to(self.device), group=self.group))
        return [one.cpu() for one in found]

    def _to_all(self, send: Tensor, sizes: list[int], own: int) -> Tensor:
        received = self._buffer("received", own * self.size, self.device)
        _meeting(
            lambda: dist.all_to_all_single(received, send.to(self.device), [own] * self.size, sizes, group=self.group)
        )
        return received.cpu()


@dataclass(frozen=True)
class _Layout:
    """What goes to or comes from one rank in a piece, and where it lies in the buffer."""

    ranges: list[tuple[int, int, int]]
    offsets: list[int]
    size: int

    @classmethod
    def of(
        cls, piece: Sequence[tuple[int, int, int]], flat: Sequence[Tensor], cuts: Sequence[Cut], rank: int
    ) -> _Layout:
        ranges, offsets, size = [], [], 0
        for number, first, last in piece:
            a, b = cuts[number].bounds(rank, first, last)
            if a < b:
                ranges.append((number, a, b))
                offsets.append(size)
                size += -(-(b - a) * flat[number].itemsize // ALIGNMENT) * ALIGNMENT
        return cls(ranges, offsets, size)


def _pieces(flat: Sequence[Tensor], cuts: Sequence[Cut], ranks: int) -> Iterator[list[tuple[int, int, int]]]:
    """(tensor, first, last) of slices, several together up to PIECE_BYTES over all ranks."""
    held: list[tuple[int, int, int]] = []
    room = PIECE_BYTES
    for number, (tensor, cut) in enumerate(zip(flat, cuts, strict=True)):
        step = max(PIECE_BYTES // (ranks * tensor.itemsize) // ALIGNMENT, 1) * ALIGNMENT
        for first in range(0, cut.step if cut.elements else 0, step):
            last = min(first + step, cut.step)
            size = (last - first) * tensor.itemsize * ranks
            if held and size > room:
                yield held
                held, room = [], PIECE_BYTES
            held.append((number, first, last))
            room -= size
    if held:
        yield held


def _bytes_at(buffer: Tensor, offset: int, dtype: torch.dtype, count: int) -> Tensor:
    return buffer[offset : offset + count * dtype.itemsize].view(dtype)


def _meeting(collective: Callable[[], object]) -> None:
    """A collective, whose failure means that a rank is gone or stuck."""
    try:
        collective()
    except RuntimeError as error:
        raise errors.RunError(
            "the ranks lost contact during a merge", got=str(error).splitlines()[0][:200],
            remedy="start the job again from its last checkpoint",
        ) from error  # fmt: skip
