"""The element-wise oracles on numbers small enough to do by hand."""

import numpy as np
import pytest
from tests.oracles import elementwise as oracle


@pytest.mark.parametrize(("density", "size", "kept"), [(0.5, 5, 2), (0.5, 7, 4), (0.1, 4, 0), (0.7, 3, 2), (1, 9, 9)])
def test_kept_counts_are_rounded_half_to_even(density, size, kept):
    """2.5 is 2 and 3.5 is 4."""
    assert oracle.kept_count(density, size) == kept


def test_among_equal_magnitudes_the_first_stay():
    """Whatever their signs."""
    assert oracle.largest(np.array([1.0, -1, 3, -1, 1, -3]), 0.5).tolist() == [True, False, True, False, False, True]


def test_the_middle():
    """One of ten at the top goes, then so many at the bottom that half stay; never more at the top than may go."""
    delta = np.arange(1.0, 11.0)
    assert delta[oracle.middle(delta, 0.5, 0.1)].tolist() == [5, 6, 7, 8, 9]
    assert delta[oracle.middle(delta, 0.9, 0.3)].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert np.flatnonzero(oracle.middle(np.ones(10), 0.5, 0.2)).tolist() == [0, 1, 2, 3, 4]


def test_signs_are_elected_by_the_weighted_sum():
    """3 - 0.5 * 4 is positive, so that 3 stays and, by its negative weight, -4 would; zero counts as positive."""
    ends = oracle.added(np.zeros(3), [np.array([3.0, 1, 0]), np.array([4.0, -1, 0])], [1, -0.5], elect=True)
    assert ends.tolist() == [3, 1.5, 0]
    even = oracle.added(np.zeros(2), [np.array([1.0, -2]), np.array([-1.0, 2])], [1, 1], elect=True, normalize=True)
    assert even.tolist() == [1, 2]


def test_chances_rise_with_the_rank_in_the_row():
    """From density - epsilon to density + epsilon in even steps; the density for a row of one element."""
    chances = oracle.keep_probabilities(np.array([[3.0, -1, 2], [0, 0, 5]]), 0.5, 0.2)
    assert chances == pytest.approx(np.array([[0.7, 0.3, 0.5], [0.3, 0.5, 0.7]]))
    assert oracle.keep_probabilities(np.ones((2, 1)), 0.4, 0.1).tolist() == [[0.4], [0.4]]


def test_selection_is_of_positions_that_differ():
    """Half of two, not of four: the others are the same in all models."""
    models = [np.array([1.0, 5, 2, 2]), np.array([2.0, 1, 2, 2])]
    assert oracle.sce(np.zeros(4), models, 0.5).tolist() == [0, (25 * 5 + 1) / 26, 0, 0]


def test_own_updates_are_taken_and_shared_ones_averaged():
    """With one shared element and two of its own, a model's own ones grow by r / 2."""
    models = [np.array([1.0, 2, 4, 0]), np.array([0.0, 0, 2, 0])]
    assert oracle.ram(np.zeros(4), models).tolist() == [1, 2, 3, 0]
    assert oracle.ram(np.zeros(4), models, r=0.5, alpha=1).tolist() == [1.25, 2.5, 3, 0]
