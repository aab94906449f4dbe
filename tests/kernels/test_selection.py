"""Exact selection: against a sort, for every program, whatever the sample says and however many are equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from stockpot.kernels import Row, Wanted, _native, cut, kept_count, largest, middle, widened
from stockpot.kernels._selection import FEW


class Held:
    """A tensor of all inputs in memory, in small pieces."""

    def __init__(self, rows: Sequence[Row], is_near: bool, room_bytes: int = 1 << 22) -> None:
        self.rows = rows
        self.is_near = is_near
        self.room_bytes = room_bytes
        self.count = len(rows[0])
        self.dtypes = tuple(row.dtype for row in rows)
        self.passes = 0

    def pieces(self, *, is_glimpse: bool = False) -> Iterator[tuple[int, Sequence[Row]]]:
        """In order."""
        self.passes += not is_glimpse
        for start in range(0, self.count, 1 << 16):
            yield start, self.load(start, min(start + (1 << 16), self.count))

    def load(self, start: int, stop: int) -> Sequence[Row]:
        """Some elements."""
        return cut(self.rows, start, stop)


def row_of(values: np.ndarray, dtype: str) -> Row:
    """Numbers in a dtype."""
    if dtype != "bfloat16":
        return Row(dtype, np.ascontiguousarray(values.astype(dtype)).view(np.uint8))
    bits = values.astype(np.float32).view(np.uint32)
    return Row(dtype, ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(np.uint8))


def keys_of(rows: Sequence[Row], row: int) -> np.ndarray:
    """Magnitudes of differences, as they are defined."""
    base, own = widened(rows[0]), widened(rows[row])
    if {rows[0].dtype, rows[row].dtype} <= {"bfloat16", "float16"}:
        with np.errstate(over="ignore"):
            return np.abs(own.astype(np.float32) - base.astype(np.float32)).astype(np.float64)
    return np.abs(own - base)


def steps(kind: str, count: int, generator: np.random.Generator) -> np.ndarray:
    """Differences of one kind."""
    if kind == "zero":
        return np.zeros(count)
    if kind == "few values":
        return generator.integers(-2, 3, count) * 2.0**-10
    if kind == "mostly none":
        return np.where(generator.random(count) < 0.9, 0.0, generator.normal(0, 1e-3, count))
    if kind == "by rows":
        return (
            generator.normal(0, 1e-3, count)
            * np.repeat(2.0 ** generator.integers(-6, 6, count // 500 + 1), 500)[:count]
        )
    return generator.normal(0, 1e-3, count) * generator.lognormal(0, 1, count)


@pytest.fixture(params=["C", "numpy"])
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the two."""
    if request.param == "numpy":
        monkeypatch.setattr(_native, "library", lambda: None)
    elif _native.library() is None:
        pytest.skip("no C program was built")


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("is_near", [True, False])
@pytest.mark.parametrize("kind", ["plain", "zero", "few values", "mostly none", "by rows"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("count", [1, 700, FEW + 1_001])
def test_the_cut_is_that_of_a_sort(count: int, dtype: str, kind: str, is_near: bool) -> None:
    """As many as wanted, the largest, of equal ones the first; and the middle, which its last largest leave."""
    generator = np.random.default_rng(count)
    base = generator.normal(0, 0.02, count)
    rows = [row_of(base, dtype), *(row_of(base + steps(kind, count, generator), dtype) for _ in range(2))]
    places = np.arange(count)
    for share in (0.0, 0.2, 0.999, 1.0):
        number = kept_count(share, count)
        room = 1 << 22 if is_near else 1 << 10
        found = largest(Held(rows, is_near, room), [[Wanted(number)], [Wanted(number // 2)]])
        for row, wanted in ((1, number), (2, number // 2)):
            keys, (one,) = keys_of(rows, row), found[row - 1]
            kept = (keys > one.key) | ((keys == one.key) & (places < one.until))
            order = np.lexsort((places, -keys))
            assert np.array_equal(np.flatnonzero(kept), np.sort(order[:wanted]))
        top = min(kept_count(0.1, count), count - number)
        low, high = middle(Held(rows, is_near, room), [(number, top), (number, top)])[0]
        keys = keys_of(rows, 1)
        kept = (keys > low.key) | ((keys == low.key) & (places < low.until))
        kept &= (keys < high.key) | ((keys == high.key) & (places < high.until))
        left = np.lexsort((-places, -keys))[top:]
        order = left[np.lexsort((left, -keys[left]))]
        assert np.array_equal(np.flatnonzero(kept), np.sort(order[:number]))


def test_a_sample_saves_passes() -> None:
    """One look is enough where the sample was right; the widest tensors are never sorted."""
    generator = np.random.default_rng(3)
    base = generator.normal(0, 0.02, 1_000_000)
    rows = [row_of(base, "float32"), row_of(base + generator.normal(0, 1e-3, base.size), "float32")]
    near, far = Held(rows, True), Held(rows, False)
    assert largest(near, [[Wanted(300_000)]]) == largest(far, [[Wanted(300_000)]])
    assert (near.passes, far.passes) == (1, 2)


@pytest.mark.usefixtures("program")
def test_nan_is_nowhere() -> None:
    """It has no rank; where too few others are left, all of them are kept."""
    values = np.arange(8.0)
    values[3] = np.nan
    rows = [row_of(np.zeros(8), "float64"), row_of(values, "float64")]
    assert largest(Held(rows, True), [[Wanted(2)]])[0][0].key == 6.0
    assert largest(Held(rows, True), [[Wanted(7)]])[0][0].key == 0.0


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_infinite_keys_have_a_rank(dtype: str, share: float) -> None:
    """Those of differences that overflow, and of Inf itself: the search ends, and the first of them count as larger."""
    values = np.where(np.arange(40) % 2 == 0, 3e38, 1.0) if dtype == "bfloat16" else np.full(40, np.inf)
    base = np.where(values > 2.0, -values, 0.0) if dtype == "bfloat16" else np.zeros(40)
    rows = [row_of(base, dtype), row_of(values, dtype)]
    number = kept_count(share, 40)
    ((one,),) = largest(Held(rows, True), [[Wanted(number)]])
    keys = keys_of(rows, 1)
    assert int(((keys > one.key) | ((keys == one.key) & (np.arange(40) < one.until))).sum()) == number
