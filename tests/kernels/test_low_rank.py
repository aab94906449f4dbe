"""A thin product added to a range: right, and to the same bits however the range is cut, in C and without it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpot.kernels import Row, _native, add_low_rank, factors


def case(seed: int, rows: int, columns: int, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A tensor, and two factors."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(rows * columns), rng.standard_normal((rows, rank)), rng.standard_normal((rank, columns))


def row_of(values: np.ndarray) -> Row:
    """A row of float64."""
    return Row("float64", values.copy().view(np.uint8))


def stepwise(base: np.ndarray, left: np.ndarray, right: np.ndarray, scale: float) -> np.ndarray:
    """Every element by itself in Python's own floats."""
    found = []
    for place, value in enumerate(base.tolist()):
        row, column = divmod(place, right.shape[1])
        total = 0.0
        for a, b in zip(left[row].tolist(), right[:, column].tolist(), strict=True):
            total += a * b
        found.append(value + scale * total)
    return np.array(found)


@given(st.integers(0, 9), st.integers(1, 5), st.sampled_from([1, 3, 63, 64, 65, 130]), st.integers(0, 9), st.data())
@settings(deadline=None, max_examples=60)
def test_every_range_is_the_stepwise_sum(seed: int, rows: int, columns: int, rank: int, data: st.DataObject) -> None:
    """Bits are those of the definition for the whole and for any part of it."""
    base, left, right = case(seed, rows, columns, rank)
    expected = stepwise(base, left, right, 0.3)
    start = data.draw(st.integers(0, base.size))
    stop = data.draw(st.integers(start, base.size))
    part = np.empty(stop - start)
    add_low_rank(row_of(base[start:stop]), part, start, factors(left, right, exact=False), 0.3)
    assert part.tobytes() == expected[start:stop].tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("isa", ["any", "avx2", "avx512", "0"])
def test_every_machine_gives_the_same_bits(isa: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused where products are exact, or not; in C of any instruction set, or by numpy; of every dtype."""
    base, left, right = case(1, 7, 130, 5)
    left, right = left.astype(np.float32).astype(np.float64), right.astype(np.float32).astype(np.float64)
    stored = torch.from_numpy(base).to(getattr(torch, dtype))
    expected = stepwise(stored.double().numpy(), left, right, -1.7)
    monkeypatch.setenv(_native.SWITCH, isa)
    _native.library.cache_clear()
    _native.instruction_set.cache_clear()
    try:
        for exact in (True, False):
            found = np.empty(base.size)
            row = Row(dtype, stored.view(torch.uint8).numpy())
            add_low_rank(row, found, 0, factors(left, right, exact), -1.7)
            assert found.tobytes() == expected.tobytes()
    finally:
        monkeypatch.undo()
        _native.library.cache_clear()
        _native.instruction_set.cache_clear()


def test_against_exact_arithmetic() -> None:
    """Within rank + 2 roundings of the exact sum."""
    base, left, right = case(2, 3, 70, 8)
    found = np.empty(base.size)
    add_low_rank(row_of(base), found, 0, factors(left, right, exact=False), 0.5)
    for place in range(base.size):
        row, column = divmod(place, 70)
        terms = [Fraction(a) * Fraction(b) for a, b in zip(left[row].tolist(), right[:, column].tolist(), strict=True)]
        exact = Fraction(base[place]) + Fraction(0.5) * sum(terms)
        size = abs(Fraction(base[place])) + sum(map(abs, terms))
        assert abs(Fraction(found[place]) - exact) <= 10 * size * Fraction(2) ** -53
