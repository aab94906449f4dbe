"""An input whose embedding and head have the output's rows, gathered or computed while they are read.

Rows keep their bytes where all of them are rows of inputs in one dtype, or zeros. A tensor that has means of rows is
given as float64, so that the one rounding is that of whoever writes it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stockpot import errors
from stockpot.checkpoint import (
    TORCH_NAMES,
    FileIdentity,
    LastGathered,
    Part,
    Source,
    TensorInfo,
    View,
    count,
    is_mergeable,
    itemsize,
    nbytes,
    read_dense,
)
from stockpot.kernels import Row, widened
from stockpot.measure import Array
from stockpot.vocabulary._rows import MEAN, ZERO, Rows

WIDE = "F64"
CHUNK_BYTES = 1 << 20
"""Of rows that are read at once for a mean or to be widened."""
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TokenTensor:
    """A tensor with a row for each token: the input's own, what it is in the output, and the same of other inputs."""

    own: TensorInfo
    shown: TensorInfo
    peers: Mapping[int, TensorInfo]
    width: int
    """Elements of a row."""
    is_wide: bool
    """Whether it is given as float64."""


@dataclass(frozen=True)
class Rearranged:
    """An input in the output's vocabulary, as a source."""

    inner: Source
    others: tuple[Source, ...]
    rows: Rows
    changed: Mapping[str, TokenTensor] = field(repr=False)
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    _breaks: NDArray[np.int64] = field(repr=False)
    """Where a run of consecutive own rows ends, or anything else."""
    _means: dict[str, Array] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _gathered: LastGathered[tuple[int, str]] = field(default_factory=LastGathered, repr=False)

    @property
    def ref(self) -> str:
        """What the user calls it."""
        return self.inner.ref

    @property
    def roots(self) -> tuple[Path, ...]:
        """Its own."""
        return self.inner.roots

    @property
    def files(self) -> tuple[FileIdentity, ...]:
        """Its own; rows that it borrows are in files of other inputs."""
        return self.inner.files

    @property
    def aliases(self) -> Mapping[str, str]:
        """As they are."""
        return self.inner.aliases

    @property
    def parts(self) -> tuple[Part, ...]:
        """As they are."""
        return self.inner.parts

    @property
    def notes(self) -> tuple[str, ...]:
        """As they are."""
        return self.inner.notes

    @property
    def folder(self) -> Path | None:
        """As it is."""
        return self.inner.folder

    @property
    def is_pickle(self) -> bool:
        """As it is."""
        return self.inner.is_pickle

    @property
    def commit(self) -> str:
        """As it is."""
        return self.inner.commit

    @property
    def working_bytes(self) -> int:
        """The numbers of rows, means, rows that are read at once, and a strided tensor that is gathered."""
        strided = [one.own for one in self.changed.values() if one.own.strides is not None]
        dense = max((info.nbytes + info.size_bytes for info in strided), default=0)
        means = sum(8 * one.width for one in self.changed.values())
        index = self.rows.index.nbytes + self._breaks.nbytes
        return self.inner.working_bytes + index + means + dense + 16 * CHUNK_BYTES

    def downloads(self, *, side_files: bool) -> Mapping[str, int]:
        """Its own."""
        return self.inner.downloads(side_files=side_files)

    def fetched(self, *, side_files: bool = True) -> Rearranged:
        """It, and those that it borrows from, on this machine."""
        inner = self.inner.fetched(side_files=side_files)
        others = tuple(other.fetched(side_files=False) for other in self.others)
        if inner is self.inner and all(one is other for one, other in zip(others, self.others, strict=True)):
            return self
        return replace(self, inner=inner, others=others)

    def view(self, info: TensorInfo, start: int, size: int) -> View | None:
        """Bytes where they are, of tensors that have no rows of tokens."""
        return None if info.name in self.changed else self.inner.view(info, start, size)

    def drop_views(self, infos: Sequence[TensorInfo]) -> None:
        """Viewed tensors are not needed for now."""
        self.inner.drop_views([info for info in infos if info.name not in self.changed])

    def close(self) -> None:
        """Close it, and those that it borrows from."""
        for source in (self.inner, *self.others):
            source.close()

    def read_into(self, info: TensorInfo, start: int, out: memoryview) -> None:
        """Fill ``out`` with bytes of a tensor, from its byte ``start`` on."""
        if (tensor := self.changed.get(info.name)) is None:
            self.inner.read_into(info, start, out)
            return
        item = itemsize(tensor.shown.dtype)
        first, last = start // item, -(-(start + len(out)) // item)
        room = np.frombuffer(out, np.uint8)
        is_whole = not (start % item or len(out) % item)
        target = room if is_whole else np.empty((last - first) * item, np.uint8)
        self._fill(tensor, first, last, target)
        if not is_whole:
            room[:] = target[start - first * item :][: len(out)]

    def _fill(self, tensor: TokenTensor, first: int, last: int, target: Bytes) -> None:
        """Elements ``first`` to ``last`` of what is shown."""
        item, is_wide = itemsize(tensor.shown.dtype), tensor.is_wide
        for begin, end in self._pieces(tensor, first, last):
            part = target[(begin - first) * item : (end - first) * item]
            row, column = divmod(begin, tensor.width)
            code = int(self.rows.index[row])
            if code >= 0:
                start = code * tensor.width + column
                if is_wide:
                    _put(part, self._values(None, tensor.own, start, start + end - begin))
                else:
                    self._read(None, tensor.own, start, part)
            elif code == ZERO:
                part[:] = 0
            elif is_wide:
                _put(part, self._borrowed(tensor, row)[column : column + end - begin])
            else:
                ((place, own),) = self.rows.places(row)
                self._read(place, tensor.peers[place], own * tensor.width + column, part)

    def _pieces(self, tensor: TokenTensor, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Elements that lie together where they are read from: runs of own rows, or one other row."""
        width = tensor.width
        most = max(width, CHUNK_BYTES // 8 // width * width) if tensor.is_wide else last - first
        begin = first
        while begin < last:
            row = begin // width
            stop = int(self._breaks[np.searchsorted(self._breaks, row, side="right")]) * width
            end = min(stop, last, begin + most)
            yield begin, end
            begin = end

    def _borrowed(self, tensor: TokenTensor, row: int) -> Array:
        """A row that is the mean of others."""
        if self.rows.index[row] == MEAN:
            return self._mean(tensor)
        places = self.rows.places(row)
        total = np.zeros(tensor.width)
        for place, own in places:
            total += self._values(place, tensor.peers[place], own * tensor.width, (own + 1) * tensor.width)
        return total / len(places)

    def _mean(self, tensor: TokenTensor) -> Array:
        """The mean of all rows that tokens have, in their order."""
        name = tensor.own.name
        with self._lock:
            if name not in self._means:
                total, rows = np.zeros(tensor.width), 0
                for begin, end in _stretches(self.rows.index != MEAN, max(1, CHUNK_BYTES // 8 // tensor.width)):
                    chunk = np.empty((end - begin, tensor.width))
                    self._fill(tensor, begin * tensor.width, end * tensor.width, chunk.reshape(-1).view(np.uint8))
                    total += chunk.sum(axis=0)
                    rows += end - begin
                self._means[name] = total / max(rows, 1)
            return self._means[name]

    def _values(self, place: int | None, info: TensorInfo, start: int, stop: int) -> Array:
        """Elements of an input's tensor as float64, exactly."""
        data = np.empty((stop - start) * itemsize(info.dtype), np.uint8)
        self._read(place, info, start, data)
        return widened(Row(TORCH_NAMES[info.dtype], data))

    def _read(self, place: int | None, info: TensorInfo, start: int, out: Bytes) -> None:
        """Bytes of an input's tensor, from its element ``start`` on; None is the input itself."""
        source = self.inner if place is None else self.others[place]
        begin = start * itemsize(info.dtype)
        if info.strides is None:
            source.read_into(info, begin, out.data)
        else:
            key = (-1 if place is None else place, info.name)
            out[:] = self._gathered.get(key, lambda: read_dense(source, info))[begin : begin + out.size]


def _stretches(chosen: NDArray[np.bool_], most: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of what is chosen, as far as it lies together, at most so many at once.

    >>> list(_stretches(np.array([True, True, False, True]), 1)), list(_stretches(np.array([True, True, False]), 9))
    ([(0, 1), (1, 2), (3, 4)], [(0, 2)])
    """
    edges = np.flatnonzero(np.diff(np.concatenate(([False], chosen, [False]))))
    for start, stop in edges.reshape(-1, 2).tolist():
        for begin in range(start, stop, most):
            yield begin, min(begin + most, stop)


def _put(part: Bytes, values: Array) -> None:
    part[:] = values.view(np.uint8)


def rearranged(
    inputs: Sequence[Source],
    number: int,
    rows: Rows,
    tensors: Mapping[str, Mapping[int, TensorInfo]],
) -> Rearranged:
    """Put an input into the output's vocabulary.

    ``tensors``: by the input's own name of each tensor that has rows of tokens, the same tensor of every input that has
    it, by the input's number. Raises TokenizerError where a row is to come from an input without such a tensor, or a
    mean is to be taken of what is no plain float.
    """
    codes = set(rows.index[rows.index <= -3].tolist())
    used = [rows.borrowed[-3 - code] for code in sorted(codes, reverse=True)]
    needed = {place for places in used for place, _ in places}
    has_means = bool((rows.index == MEAN).any()) or any(len(places) > 1 for places in used)
    inner = inputs[number]
    shown = dict(inner.tensors)
    changed: dict[str, TokenTensor] = {}
    for name, by_input in tensors.items():
        own = by_input[number]
        for place in sorted(needed - by_input.keys()):
            raise errors.TokenizerError(
                "a row is to come from an input that lacks the tensor", tensor=name, file=inputs[place].ref,
                remedy="state another source for its tokens",
            )  # fmt: skip
        peers = {place: by_input[place] for place in needed}
        is_wide = has_means or any(info.dtype != own.dtype for info in peers.values())
        for info in (own, *peers.values()):
            if is_wide and not is_mergeable(info.dtype):
                raise errors.TokenizerError(
                    "a row is to be computed from what is no plain float", tensor=name, file=inner.ref, got=info.dtype,
                    remedy="give the model in a floating dtype",
                )  # fmt: skip
        shape = _shape(own.shape, rows)
        dtype = WIDE if is_wide else own.dtype
        nominal = own.output_dtype if is_wide or own.nominal else None
        shown[name] = TensorInfo(name, dtype, shape, own.file, 0, nbytes(dtype, shape), None, nominal)
        changed[name] = TokenTensor(own, shown[name], peers, count(own.shape) // rows.own_rows, is_wide)
    runs = np.flatnonzero((np.diff(rows.index) != 1) | (rows.index[:-1] < 0)) + 1
    return Rearranged(inner, tuple(inputs), rows, changed, shown, np.append(runs, len(rows.index)))


def _shape(own: tuple[int, ...], rows: Rows) -> tuple[int, ...]:
    """The output's: of a buffer of one row, dim 1 counts the tokens."""
    is_turned = len(own) == 2 and own[0] == 1 and own[1] == rows.own_rows
    return (1, len(rows.index)) if is_turned else (len(rows.index), *own[1:])
