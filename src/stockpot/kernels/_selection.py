"""Exact selection among magnitudes of differences: the key of a rank, and the place up to which equals count as larger.

No sort: a sample brackets the key, one look at all elements counts what is above the bracket and keeps what is inside,
and only that is partitioned. Where a bracket fails, or equals fill it, elements are counted by the bits of their keys.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stockpot.kernels import _native, _native_trim, _plain_trim
from stockpot.kernels._constants import BLOCK, CHUNK
from stockpot.kernels._native_trim import Search
from stockpot.kernels._rows import NonFiniteInputError, Row, first_nonfinite

FEW = 1 << 16
"""Elements that are partitioned at once."""
SAMPLE, RUN = 1 << 16, 64
"""Elements of a sample, in runs of neighbours; of a large tensor four times as many."""
LARGE = 1 << 25
BYTES_OF_KEY = 32
"""Of a key that is kept to be partitioned, with its place, and once more while it is."""
BINS = 1 << 16
DEVIATIONS = 4.0
FOREVER = (1 << 63) - 1


class Elements(Protocol):
    """A tensor of all inputs, to be gone through as often as needed."""

    @property
    def count(self) -> int:
        """Elements of each input."""

    @property
    def is_near(self) -> bool:
        """Whether looking at a few elements of a piece costs less than reading it."""

    @property
    def room_bytes(self) -> int:
        """Memory that may be taken for keys."""

    def pieces(self) -> Iterator[tuple[int, Sequence[Row]]]:
        """(place of the first element, rows): all of it in order, in multiples of BLOCK elements but for the last."""

    def load(self, start: int, stop: int) -> Sequence[Row]:
        """Some elements; ``start`` is a multiple of BLOCK."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Some of a row's keys: those above ``key`` (``larger`` in number), and of those equal to it the ones before the
    place ``until``, or, of a cut from behind, the ones from there on."""

    key: float
    until: int
    larger: int = 0


EVERYTHING = Cut(0.0, FOREVER)
NOTHING = Cut(math.inf, 0)


def middle(
    elements: Elements, counts: Sequence[tuple[int, int]], *, allow_nonfinite: bool = False
) -> list[tuple[Cut, Cut]]:
    """For each row after the first, (keep, top) -> cuts between which the ``keep`` largest without the ``top`` lie.

    An element is kept that the first cut has and the second, from behind, has not: of equal keys the first stay.
    """
    wanted = [(Wanted(keep + top), Wanted(top, from_behind=True)) for keep, top in counts]
    found = [(low, high) for low, high in largest(elements, wanted, allow_nonfinite=allow_nonfinite)]
    if any(low.key == high.key and top for (low, high), (_, top) in zip(found, counts, strict=True)):
        # Both cuts go through equals: of these, the first stay, and none is too large.
        again = [(Wanted(high.larger + keep),) for (_, high), (keep, _) in zip(found, counts, strict=True)]
        anew = largest(elements, again, allow_nonfinite=allow_nonfinite)
        found = [
            (own[0], Cut(high.key, FOREVER, high.larger)) if low.key == high.key and top else (low, high)
            for own, (low, high), (_, top) in zip(anew, found, counts, strict=True)
        ]
    return found


def kept_count(share: float, count: int) -> int:
    """round(share * count), half to even, within 0 and count."""
    return min(max(round(share * count), 0), count)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The ``number`` largest keys; of equal ones the first count as larger, or ``from_behind`` the last."""

    number: int
    from_behind: bool = False


def largest(
    elements: Elements, wanted: Sequence[Sequence[Wanted]], *, allow_nonfinite: bool = False
) -> list[list[Cut]]:
    """For each row after the first, the cut for each wanted number of its largest keys.

    The key of an element is the magnitude of its difference from the first row: rounded to float32 where both are of 16
    bits, else to float64. Raises NonFiniteInputError, with the place in the tensor, unless ``allow_nonfinite``.
    Cost: a sample and one look at all elements; one or two more where equals abound.
    """
    room = max(elements.room_bytes // BYTES_OF_KEY // max(sum(map(len, wanted)), 1), FEW)
    hunts = [[Hunt(row, one, elements.count, room) for one in own] for row, own in enumerate(wanted, 1)]
    under_way = [hunt for own in hunts for hunt in own if hunt.cut is None]
    if elements.count > FEW and under_way:
        _bracket(elements, under_way)
    is_first = True
    while under_way:
        for hunt in under_way:
            hunt.begin()
        for place, rows in elements.pieces():
            if _look(rows, place, under_way) and is_first and not allow_nonfinite:
                _refuse(rows, place)
        is_first = False
        for hunt in under_way:
            hunt.settle(elements)
        under_way = [hunt for hunt in under_way if hunt.cut is None]
    return [[hunt.cut or NOTHING for hunt in own] for own in hunts]


class Hunt:
    """The search for one row's cut: ``low`` <= key < ``high`` is looked at, by bins or to be partitioned."""

    def __init__(self, row: int, wanted: Wanted, count: int, room: int) -> None:
        self.wanted = min(max(wanted.number, 0), count)
        self.from_behind = wanted.from_behind
        self.count = count
        self.room = room
        self.cut = NOTHING if self.wanted == 0 else EVERYTHING if self.wanted == count else None
        self.low, self.high = 0.0, math.inf
        self.expected = count
        self.by_bins = False
        self.search = Search(row=row)
        self.found = np.empty(0)
        self.places = np.empty(0, dtype=np.int64)
        self.blocks = np.empty(0, dtype=np.int64)
        self.bins: NDArray[np.uint32] | None = None

    def begin(self) -> None:
        """Before a pass over all elements."""
        room = min(self.expected + self.expected // 4 + CHUNK, self.count)
        room = 0 if self.by_bins or self.expected > self.room else room
        if self.found.size < room:
            self.found, self.places = np.empty(room), np.empty(room, dtype=np.int64)
        self.blocks = np.zeros(self.count // BLOCK + 1, dtype=np.int64)
        self.bins = np.zeros(BINS, dtype=np.uint32) if self.by_bins else None
        first = _bits(self.low)
        self.search = Search(
            row=self.search.row,
            low=self.low,
            high=self.high,
            least=math.inf,
            most=0.0,
            room=room,
            first=first,
            shift=max((_bits(self.high) - first - 1).bit_length() - BINS.bit_length() + 1, 0),
            found=self.found.ctypes.data,
            places=self.places.ctypes.data,
            blocks=self.blocks.ctypes.data,
            bins=self.bins.ctypes.data if self.bins is not None else None,
        )

    def settle(self, elements: Elements) -> None:
        """After a pass: the cut, or where to look next."""
        search = self.search
        rank = self.wanted - search.above
        if rank <= 0:
            self._look_between(self.high, math.inf, search.above)
        elif rank > search.inside:
            if self.low == 0.0:
                self.cut = EVERYTHING  # the rest is NaN, and NaN is kept
            else:
                self._look_between(0.0, self.low, self.count - search.above - search.inside)
        elif search.inside <= search.stored:
            self._partition(rank)
        elif search.least == search.most:
            self.cut = Cut(search.least, self._place_of(rank, elements), search.above)
        elif self.bins is not None:
            from_top = np.cumsum(self.bins[::-1], dtype=np.int64)
            number = BINS - 1 - int(np.searchsorted(from_top, rank))
            low = search.first + (number << search.shift)
            self.low, self.high = _number(low), _number(low + (1 << search.shift))
            self.expected = int(self.bins[number])
            self.by_bins = self.expected > self.room and search.shift > 0
        else:
            self._look_between(search.least, math.nextafter(search.most, math.inf), search.inside)

    def _look_between(self, low: float, high: float, expected: int) -> None:
        self.low, self.high, self.expected = low, high, expected
        self.by_bins = expected > self.room or math.isinf(high)

    def _partition(self, rank: int) -> None:
        stored = self.search.stored
        found = self.found[:stored]
        key = float(np.partition(found, stored - rank)[stored - rank])
        equals = self.places[:stored][found == key]
        larger = int((found > key).sum())
        of_equals = rank - larger
        place = int(equals[-of_equals]) if self.from_behind else int(equals[of_equals - 1]) + 1
        self.cut = Cut(key, place, self.search.above + larger)

    def _place_of(self, rank: int, elements: Elements) -> int:
        """Behind the ``rank``-th of equals, all of which are inside; from behind, at the ``rank``-th last."""
        if self.from_behind:
            rank = self.search.inside - rank + 1
        so_far = np.cumsum(self.blocks)
        block = int(np.searchsorted(so_far, rank))
        start = block * BLOCK
        again = Hunt(self.search.row, Wanted(1), self.count, FEW)
        again.low, again.high, again.expected = self.search.least, math.nextafter(self.search.least, math.inf), BLOCK
        again.begin()
        _look(elements.load(start, min(start + BLOCK, self.count)), start, [again])
        place = int(again.places[rank - int(so_far[block] - self.blocks[block]) - 1])
        return place if self.from_behind else place + 1


def _bracket(elements: Elements, hunts: Sequence[Hunt]) -> None:
    """Where a sample says that the keys are; by bins where even that would cost a pass."""
    if not elements.is_near:
        for hunt in hunts:
            hunt.by_bins = True
        return
    size = SAMPLE if elements.count < LARGE else 4 * SAMPLE
    step = max(elements.count // (size // RUN) // RUN * RUN, RUN)
    rows_of = sorted({hunt.search.row for hunt in hunts})
    samples = [Hunt(row, Wanted(1), elements.count, 4 * size) for row in rows_of]
    for sample in samples:
        sample.expected = 2 * size
        sample.begin()
    for place, rows in elements.pieces():
        _look(rows, place, samples, RUN, step)
    keys = {row: np.sort(sample.found[: sample.search.stored]) for row, sample in zip(rows_of, samples, strict=True)}
    for hunt in hunts:
        own = keys[hunt.search.row]
        share = 1.0 - hunt.wanted / elements.count
        reach = DEVIATIONS * math.sqrt(share * (1.0 - share) / max(own.size, 1)) + 2.0 / max(own.size, 1)
        low, high = (int(part * own.size) for part in (share - reach, share + reach))
        hunt.low = float(own[low]) if low > 0 else 0.0
        hunt.high = float(own[high]) if high < own.size else math.inf
        if hunt.low >= hunt.high:
            hunt.high = math.nextafter(hunt.low, math.inf)
        inside = np.searchsorted(own, hunt.high) - np.searchsorted(own, hunt.low)
        hunt.expected = int(inside / max(own.size, 1) * elements.count)


def _look(rows: Sequence[Row], place: int, hunts: Sequence[Hunt], run: int = CHUNK, step: int = CHUNK) -> bool:
    """Go on with searches, which are in the order of their rows; whether a key is not finite."""
    if _native.library() is None:
        return _plain_trim.look(rows, place, run, step, hunts)
    table: Any = (Search * len(hunts))(*[hunt.search for hunt in hunts])
    odd = _native_trim.look(rows, place, run, step, table)
    for hunt, search in zip(hunts, table, strict=True):
        hunt.search = search
    return odd


def _refuse(rows: Sequence[Row], place: int) -> None:
    for source, row in enumerate(rows):
        if (at := first_nonfinite(row)) >= 0:
            raise NonFiniteInputError(source, place + at)


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _number(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])
