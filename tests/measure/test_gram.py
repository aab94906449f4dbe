"""Norms, cosines and their mean from Gram matrices, and the packed form."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles import exact, model_stock
from tests.oracles.data import fine_tunes, gram_of_cosines, normal, with_anchor

from stockpot import measure


def grams(count, n, seed):
    """A batch of Gram matrices over (w0, d_1 .. d_n)."""
    return np.stack([exact.gram(*fine_tunes(n, 15, seed=seed + 20 * i, own=0.7)) for i in range(count)])


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_norms_are_lengths_of_the_task_vectors(n):
    """|d_i|, without the anchor."""
    base, models = fine_tunes(n, 15, seed=1)
    expected = [math.sqrt(math.fsum(exact.numbers(model - base) ** 2)) for model in models]
    # A square root of a sum rounded once.
    assert measure.norms(exact.gram(base, models)) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_cosines_follow_the_oracle(n):
    """<d_i, d_j> / (|d_i| |d_j|), symmetric, one on the diagonal."""
    gram = grams(1, n, seed=2)[0]
    found = measure.cosines(gram)
    assert found.shape == (n, n)
    for i, j in itertools.product(range(n), repeat=2):
        # Two square roots, two divisions, one product.
        assert found[i, j] == pytest.approx(model_stock.cosine(gram[1:, 1:], i, j), abs=1e-15)


def test_leading_axes_are_kept():
    """Every function maps over leading axes, group by group, bit by bit."""
    batch = grams(6, 3, seed=3).reshape(2, 3, 4, 4)
    for function in (measure.norms, measure.cosines, measure.mean_cosine, measure.pack):
        whole = function(batch)
        for at in np.ndindex(2, 3):
            assert np.array_equal(whole[at], function(batch[at])), function.__name__


def test_cosines_stay_within_one():
    """Rounding above |d1||d2| is clipped, on both sides."""
    over = 1 + 1e-12
    assert measure.cosines(with_anchor(np.array([[1.0, over], [over, 1.0]])))[0, 1] == 1.0
    assert measure.cosines(with_anchor(np.array([[1.0, -over], [-over, 1.0]])))[0, 1] == -1.0


@pytest.mark.parametrize("lengths", [(1e-12, 1e12), (1e-20, 1e-20), (1e70, 1e-70), (1e-100, 1e-100)])
def test_cosines_are_free_of_scale(lengths):
    """Lengths of any size, equal or far apart, change no cosine."""
    gram = with_anchor(gram_of_cosines([0.3], lengths))
    # A few roundings.
    assert measure.cosines(gram)[0, 1] == pytest.approx(0.3, rel=1e-14)


def test_cosines_of_a_zero_vector_are_zero():
    """A task vector that is zero has no direction: 0 with all others, without a warning."""
    found = measure.cosines(with_anchor(gram_of_cosines([0.5, 0.5, 0.5], [1.0, 0.0, 2.0])))
    assert found[1].tolist() == [0.0, 0.0, 0.0]
    assert found[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert found[0, 2] == pytest.approx(0.5, abs=1e-15)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_mean_cosine_is_over_all_pairs(n):
    """The arithmetic mean of the N(N-1)/2 cosines."""
    gram = grams(1, n, seed=4)[0]
    assert float(measure.mean_cosine(gram)) == pytest.approx(model_stock.mean_cosine(gram[1:, 1:]), abs=1e-15)


@pytest.mark.parametrize("zeros", [0, 1, 2])
def test_mean_cosine_needs_no_pairs(zeros):
    """It equals (|sum u_i|^2 - K) / (N(N-1)) with unit vectors u_i, zero for those that did not move; K moved."""
    base, models = fine_tunes(5, 40, seed=5)
    models[:zeros] = [base.clone() for _ in range(zeros)]
    steps = [exact.numbers(model) - exact.numbers(base) for model in models]
    units = sum(step / np.linalg.norm(step) for step in steps if step.any())
    expected = (units @ units - (5 - zeros)) / (5 * 4)
    # Sums of forty products of size one over twenty.
    assert float(measure.mean_cosine(exact.gram(base, models))) == pytest.approx(expected, abs=1e-14)


def test_frozen_means_that_nothing_moved():
    """is_frozen is true only where every task vector is zero, however small the others are."""
    moving = [with_anchor(np.diag([1e-300, 0.0])), with_anchor(np.diag([0.0, 1.0])), with_anchor(np.eye(2))]
    assert measure.is_frozen(np.stack([with_anchor(np.zeros((2, 2)), 5.0), *moving])).tolist() == [True] + [False] * 3


@settings(deadline=None, derandomize=True, max_examples=40)
@given(size=st.integers(1, 8), batch=st.lists(st.integers(0, 3), max_size=2), seed=st.integers(0, 2**31))
def test_packing_is_undone_by_unpacking(size, batch, seed):
    """pack keeps the upper triangle, row by row; unpack gives the symmetric matrices back, bit for bit."""
    square = normal(*batch, size, size, seed=seed).numpy()
    gram = square + np.swapaxes(square, -1, -2)
    packed = measure.pack(gram)
    assert packed.shape == (*batch, size * (size + 1) // 2)
    assert np.array_equal(measure.unpack(packed, size), gram)
    for at in np.ndindex(*batch):
        assert packed[at].tolist() == [gram[at][i, j] for i in range(size) for j in range(i, size)]
