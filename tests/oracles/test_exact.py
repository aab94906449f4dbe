"""The oracles' own arithmetic, held against fractions and against each other."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from . import exact
from .data import FLOATS, fine_tunes, normal


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_wide_rounding_equals_rounding_of_fractions(dtype):
    """Rounding a long double and rounding a fraction give the same value, ties and subnormals included."""
    narrow = normal(200, seed=1).numpy()
    ties = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-24, 1 + 3 * 2.0**-24]
    tiny = [2.0**-25, 3 * 2.0**-25, 2.0**-134, 3 * 2.0**-134, 2.0**-150, 3 * 2.0**-150, -(2.0**-15) * 1.01]
    values = np.array([*narrow, *ties, *tiny, 0.0])
    expected = [exact.rounded_fraction(Fraction(value), dtype) for value in values.tolist()]
    assert exact.rounded(values, dtype).tolist() == expected


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rounding_leaves_what_the_dtype_holds(dtype):
    """Values of a dtype are their own rounding."""
    values = normal(1000, seed=2, dtype=dtype)
    assert exact.rounded(exact.numbers(values), dtype).tolist() == exact.numbers(values).tolist()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_wide_gram_equals_fractions(dtype):
    """The wide Gram matrix is the exact one, rounded."""
    base, models = fine_tunes(3, 300, seed=3, dtype=dtype, shared=1e-2, own=1e-2)
    precise = np.array([[float(x) for x in row] for row in exact.gram_of_fractions(base, models)])
    # One rounding of the total; the partial sums are exact to 2^-64 of the sum of magnitudes, here under 300 times it.
    assert np.allclose(exact.gram(base, models), precise, rtol=1e-15, atol=1e-17)


def test_steps_count_representable_values():
    """Neighbours are one step apart, across zero as well; both zeros are the same place."""
    one = torch.tensor([1.0, -0.0, 2.0**-149, -1.0])
    other = torch.tensor([1.0 + 2.0**-23, 0.0, -(2.0**-149), -1.0 - 2.0**-22])
    assert exact.steps(one, other).tolist() == [1, 0, 2, 2]
