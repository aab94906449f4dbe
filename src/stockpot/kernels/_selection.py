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
from stockpot.kernels._plain_trim import is_narrow
from stockpot.kernels._rows import Row

FEW = 1 << 16
"""Elements that are partitioned at once."""
SAMPLE, RUN = 1 << 15, 64
"""Elements of a sample, in runs of neighbours; of a large tensor four times as many."""
LARGE = 1 << 25
BYTES_OF_KEY = 32
"""Of a key that is kept to be partitioned, with its place, and once more while it is."""
BINS = 1 << 16
DEVIATIONS = 4.0
MISSES = 2
"""Brackets by a sample that may fail."""
FOREVER = (1 << 63) - 1


class Elements(Protocol):
    """A tensor of all inputs, to be gone through as often as needed."""

    @property
    def count(self) -> int:
        """Elements of each input."""

    @property
    def dtypes(self) -> Sequence[str]:
        """Of the inputs."""

    @property
    def is_near(self) -> bool:
        """Whether looking at a few elements of a piece costs less than reading it."""

    @property
    def room_bytes(self) -> int:
        """Memory that may be taken for keys."""

    def pieces(self, *, is_glimpse: bool = False) -> Iterator[tuple[int, Sequence[Row]]]:
        """(place of the first element, rows): all of it in order, in multiples of BLOCK elements but for the last.

        ``is_glimpse``: few elements of each are looked at.
        """

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


def middle(elements: Elements, counts: Sequence[tuple[int, int]]) -> list[tuple[Cut, Cut]]:
    """For each row after the first, (keep, top) -> cuts between which the ``keep`` largest without the ``top`` lie.

    An element is kept that the first cut has and the second, from behind, has not: of equal keys the first stay.
    """
    wanted = [(Wanted(keep + top), Wanted(top, from_behind=True)) for keep, top in counts]
    found = [(low, high) for low, high in largest(elements, wanted)]
    if any(low.key == high.key and top for (low, high), (_, top) in zip(found, counts, strict=True)):
        # Both cuts go through equals: of these, the first stay, and none is too large.
        again = [(Wanted(high.larger + keep),) for (_, high), (keep, _) in zip(found, counts, strict=True)]
        anew = largest(elements, again)
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


def largest(elements: Elements, wanted: Sequence[Sequence[Wanted]]) -> list[list[Cut]]:
    """For each row after the first, the cut for each wanted number of its largest keys.

    The key of an element is the magnitude of its difference from the first row, in float32 where both are of 16 bits,
    else in float64; NaN is none.
    Cost: a sample and one look at all elements; one or two more where equals abound.
    """
    room = max(elements.room_bytes // BYTES_OF_KEY // max(sum(map(len, wanted)), 1), FEW)
    narrow = [is_narrow(elements.dtypes[0], dtype) for dtype in elements.dtypes]
    hunts = [[Hunt(row, one, elements.count, room, narrow[row]) for one in own] for row, own in enumerate(wanted, 1)]
    under_way = [hunt for own in hunts for hunt in own if hunt.cut is None]
    if elements.count > FEW and under_way:
        _bracket(elements, under_way)
    while under_way:
        for hunt in under_way:
            hunt.begin()
        for place, rows in elements.pieces():
            _look(rows, place, under_way)
        for hunt in under_way:
            hunt.settle(elements)
        under_way = [hunt for hunt in under_way if hunt.cut is None]
    return [[hunt.cut or NOTHING for hunt in own] for own in hunts]


class Hunt:
    """The search for one row's cut: ``low`` <= key < ``high`` is looked at, by bins or to be partitioned; a ``high`` of
    infinity is no limit.

    The key sought is at least ``floor``, and below ``ceiling``: that is proven, a bracket is a guess within.
    """

    def __init__(self, row: int, wanted: Wanted, count: int, room: int, narrow: bool) -> None:
        self.wanted = min(max(wanted.number, 0), count)
        self.from_behind = wanted.from_behind
        self.count = count
        self.room = room
        self.narrow = narrow
        self.cut = NOTHING if self.wanted == 0 else EVERYTHING if self.wanted == count else None
        self.low, self.high = 0.0, math.inf
        self.floor, self.ceiling = 0.0, math.inf
        self.expected = count
        self.by_bins = False
        self.misses = 0
        self.sample = np.empty(0)
        self.search = Search(row=row)
        self.found = np.empty(0)
        self.places = np.empty(0, dtype=np.int64)
        self.blocks = np.empty(0, dtype=np.int64)
        self.bins: NDArray[np.uint32] | None = None

    def aim(self) -> None:
        """A bracket, by the sample: one key alone where that is frequent; all that is left where there is no sample."""
        size = self.sample.size
        if not size or self.misses > MISSES:
            self.low, self.high, self.expected, self.by_bins = self.floor, self.ceiling, self.count, True
            return
        share = 1.0 - self.wanted / self.count
        reach = DEVIATIONS * math.sqrt(share * (1.0 - share) / size) * 2**self.misses + 2.0 / size
        below, above = max(int((share - reach) * size), 0), min(int((share + reach) * size), size - 1)
        middle = min(int(share * size), size - 1)
        ordered = np.partition(self.sample, sorted({below, middle, above}))
        key = float(ordered[middle])
        self.low = max(float(ordered[below]) if below > 0 else 0.0, self.floor)
        self.high = min(self._next(float(ordered[above])) if above < size - 1 else math.inf, self.ceiling)
        if self.low >= self.high:
            self.low, self.high = self.floor, self.ceiling
        self.expected = int(self._of_sample(self.low, self.high) * self.count)
        frequent = self._of_sample(key, self._next(key)) / reach
        if self.floor <= key < self.ceiling and frequent > (0.5 if self.expected > self.room else 2.0):
            self.low, self.high = key, self._next(key)
        self.by_bins = self.expected > self.room and self.high != self._next(self.low)

    def _of_sample(self, low: float, high: float) -> float:
        return float(np.count_nonzero((self.sample >= low) & (self.sample < high)) / self.sample.size)

    def begin(self, *, is_kept: bool = False) -> None:
        """Before a pass over all elements. A single key is counted, or ``is_kept`` with its places."""
        is_one = self.high == self._next(self.low) and not is_kept
        room = min(self.expected + self.expected // 4 + CHUNK, self.count)
        room = 0 if self.by_bins or is_one or self.expected > self.room else room
        if self.found.size < room:
            self.found, self.places = np.empty(room), np.empty(room, dtype=np.int64)
        self.blocks = np.zeros(self.count // BLOCK + 1, dtype=np.int64)
        self.bins = np.zeros(BINS, dtype=np.uint32) if self.by_bins else None
        first = _bits(self.low)
        self.search = Search(
            row=self.search.row,
            narrow=self.narrow,
            low=self.low,
            high=self.high if self.high < math.inf else math.nan,  # an infinite key is inside, too
            least=self.low if is_one else math.inf,
            most=self.low if is_one else 0.0,
            room=room,
            first=first,
            shift=max((_behind(self.high) - first - 1).bit_length() - BINS.bit_length() + 1, 0),
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
            self.floor = self.high
            self._missed()
        elif rank > search.inside:
            if self.low == 0.0:
                self.cut = EVERYTHING  # the rest is NaN, and NaN is kept
            else:
                self.ceiling = self.low
                self._missed()
        elif search.inside <= search.stored:
            self._partition(rank)
        elif search.least == search.most:
            self.cut = Cut(search.least, self._place_of(rank, elements), search.above)
        elif self.bins is not None:
            from_top = np.cumsum(self.bins[::-1], dtype=np.int64)
            number = BINS - 1 - int(np.searchsorted(from_top, rank))
            low = search.first + (number << search.shift)
            self._look_between(_number(low), _number(low + (1 << search.shift)), int(self.bins[number]))
        else:
            self._look_between(search.least, self._next(search.most), search.inside)

    def _missed(self) -> None:
        self.misses += 1
        self.aim()

    def _look_between(self, low: float, high: float, expected: int) -> None:
        self.low, self.high, self.expected = self._key(low), self._key(high), expected
        self.by_bins = expected > self.room and high != self._next(low)

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
        again = Hunt(self.search.row, Wanted(1), self.count, FEW, self.narrow)
        again.low, again.high, again.expected = self.search.least, self._next(self.search.least), BLOCK
        again.begin(is_kept=True)
        _look(elements.load(start, min(start + BLOCK, self.count)), start, [again])
        place = int(again.places[rank - int(so_far[block] - self.blocks[block]) - 1])
        return place if self.from_behind else place + 1

    def _key(self, limit: float) -> float:
        """The least key from a limit on."""
        if not self.narrow:
            return limit
        near = float(np.float32(limit))
        return near if near >= limit else self._next(near)

    def _next(self, key: float) -> float:
        if self.narrow:
            return float(np.nextafter(np.float32(key), np.float32(np.inf)))
        return math.nextafter(key, math.inf)


def _bracket(elements: Elements, hunts: Sequence[Hunt]) -> None:
    """Where the keys are, by a sample; none is drawn where that would cost a pass."""
    size = SAMPLE if elements.count < LARGE else 4 * SAMPLE
    step = max(elements.count // (size // RUN) // RUN * RUN, RUN)
    rows_of = sorted({hunt.search.row for hunt in hunts}) if elements.is_near else []
    narrow = {hunt.search.row: hunt.narrow for hunt in hunts}
    samples = [Hunt(row, Wanted(1), elements.count, 4 * size, narrow[row]) for row in rows_of]
    for sample in samples:
        sample.expected = 2 * size
        sample.begin()
    if samples:
        for place, rows in elements.pieces(is_glimpse=True):
            _look(rows, place, samples, RUN, step)
    keys = {sample.search.row: sample.found[: sample.search.stored] for sample in samples}
    for hunt in hunts:
        hunt.sample = keys.get(hunt.search.row, hunt.sample)
        hunt.aim()


def _look(rows: Sequence[Row], place: int, hunts: Sequence[Hunt], run: int = CHUNK, step: int = CHUNK) -> None:
    """Go on with searches, which are in the order of their rows."""
    if _native.library() is None:
        _plain_trim.look(rows, place, run, step, hunts)
        return
    table: Any = (Search * len(hunts))(*[hunt.search for hunt in hunts])
    _native_trim.look(rows, place, run, step, table)
    for hunt, search in zip(hunts, table, strict=True):
        hunt.search = search


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _behind(limit: float) -> int:
    """Bits behind the last key below a limit; infinity is no limit."""
    return _bits(limit) + (limit == math.inf)


def _number(bits: int) -> float:
    """The number of those bits; behind infinity there is none."""
    bits = min(bits, _bits(math.inf))
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])
