"""Model Stock's formula on Gram matrices: golden numbers, the rule for every odd case, batches."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from tests.oracles import exact, model_stock
from tests.oracles.data import fine_tunes, gram_of_cosines, normal, with_anchor

from stockpot import errors
from stockpot.methods import get_method

# The formula is a handful of float64 operations on a Gram matrix.
ROUNDING = 1e-14

GOLDEN = [
    (2, 0.5, 2 / 3),
    (2, 0.25, 0.4),
    (3, 0.5, 0.75),
    (4, 0.5, 0.8),
    (5, 0.25, 0.625),
    (10, 0.25, 10 / 13),
    *[(n, 1.0, 1.0) for n in (2, 3, 7, 49)],
    *[(n, 0.0, 0.0) for n in (2, 3, 7, 49)],
]


def solve(gram, **values):
    """Model Stock on a Gram matrix over (w0, d_1 .. d_N)."""
    return get_method("model_stock")(gram, values)


def equiangular(n, c, length=1.0):
    """The Gram matrix of n task vectors of one length with one pairwise cosine."""
    return with_anchor(gram_of_cosines([c] * (n * (n - 1) // 2), [length] * n))


@pytest.mark.parametrize(("n", "c", "t"), GOLDEN)
def test_golden_ratios(n, c, t):
    """t(N, c) meets the numbers derived by hand."""
    assert float(solve(equiangular(n, c)).ratio) == pytest.approx(t, abs=ROUNDING)


@pytest.mark.parametrize(("n", "c", "t"), GOLDEN)
def test_weights_are_the_ratio_shared_out(n, c, t):
    """The base weighs 1 - t and each fine-tune t / N."""
    weights = solve(equiangular(n, c)).weights
    assert weights.shape == (n + 1,)
    assert weights == pytest.approx([1 - t] + [t / n] * n, abs=ROUNDING)


@pytest.mark.parametrize("c", [0.05, 0.3, 0.5, 0.77, 0.99])
def test_two_models_follow_the_papers_formula_for_two(c):
    """N = 2 gives 2c / (1 + c)."""
    assert float(solve(equiangular(2, c)).ratio) == pytest.approx(2 * c / (1 + c), abs=ROUNDING)


def test_three_models_do_not_follow_the_formula_for_two():
    """Trap 1: N = 3 at c = .5 gives 3/4, not the 2/3 of two models."""
    assert float(solve(equiangular(3, 0.5)).ratio) == pytest.approx(0.75, abs=ROUNDING)


def test_cosines_are_averaged_not_angles():
    """Trap 2: cosines .9, .1, .2 give t = .667; their mean angle would give .716."""
    cosines = [0.9, 0.1, 0.2]
    by_angles = math.cos(sum(map(math.acos, cosines)) / 3)
    assert model_stock.ratio_of_cosine(by_angles, 3) == pytest.approx(0.716, abs=5e-4)
    assert float(solve(with_anchor(gram_of_cosines(cosines))).ratio) == pytest.approx(2 / 3, abs=ROUNDING)


def test_every_pair_counts_whatever_the_order():
    """Trap 3: every order of four models gives one ratio, that of all six pairs, not of neighbours alone."""
    vectors = normal(4, 6, seed=7).numpy() + 0.8
    matrix = vectors @ vectors.T
    expected = model_stock.ratio(matrix)
    neighbours = np.mean([model_stock.cosine(matrix, i, i + 1) for i in range(3)])
    assert abs(model_stock.ratio_of_cosine(neighbours, 4) - expected) > 1e-3
    for order in itertools.permutations(range(4)):
        ratio = solve(with_anchor(matrix[np.ix_(order, order)])).ratio
        assert float(ratio) == pytest.approx(expected, abs=ROUNDING)


@pytest.mark.parametrize("length", [1e-12, 1e-8, 1e-4, 1e-2, 1.0, 1e4, 1e12])
def test_no_absolute_epsilon(length):
    """Trap 4: t = .89 stays .89 where |d1||d2| is 1e-8, and for lengths from 1e-12 to 1e+12."""
    c = 0.89 / (2 - 0.89)
    assert float(solve(equiangular(2, c, length)).ratio) == pytest.approx(0.89, abs=ROUNDING)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("seed", range(5))
def test_any_gram_follows_the_oracle(n, seed):
    """Unequal lengths and angles: the ratio of exactly summed inner products, solved by the oracle."""
    base, models = fine_tunes(n, 20, seed=10 * seed, shared=0.4, own=0.7)
    precise = exact.gram_of_fractions(base, models)
    matrix = [[Fraction(x) for x in row[1:]] for row in precise[1:]]
    mixture = solve(np.array([[float(x) for x in row] for row in precise]))
    expected = model_stock.ratio(matrix)
    assert float(mixture.ratio) == pytest.approx(expected, abs=ROUNDING)
    assert mixture.weights == pytest.approx([1 - expected] + [expected / n] * n, abs=ROUNDING)


@pytest.mark.parametrize("norms", ["equal", "free"])
def test_leading_axes_are_groups(norms):
    """A batch of Gram matrices gives, group by group, the bits of each alone."""
    grams = np.stack([exact.gram(*fine_tunes(3, 9, seed=s, own=0.8)) for s in range(12)]).reshape(3, 4, 4, 4)
    batch = solve(grams, norms=norms)
    assert batch.weights.shape == (3, 4, 4)
    assert batch.ratio.shape == batch.clamped.shape == batch.fallback.shape == (3, 4)
    for at in np.ndindex(3, 4):
        alone = solve(grams[at], norms=norms)
        # Batched linear algebra may order its operations otherwise: a few roundings of a well-conditioned 3 x 3.
        assert batch.weights[at] == pytest.approx(alone.weights, abs=1e-12)
        assert batch.clamped[at] == alone.clamped


def test_negative_cosine_is_clamped_and_recorded():
    """Trap 7: N = 2 at c = -.5 stays at the base, and says so."""
    mixture = solve(equiangular(2, -0.5))
    assert mixture.weights.tolist() == [1.0, 0.0, 0.0]
    assert float(mixture.ratio) == 0.0
    assert bool(mixture.clamped)


def test_zero_cosine_counts_as_clamped():
    """c = 0 is c <= 0: t = 0, the base, recorded."""
    mixture = solve(equiangular(3, 0.0))
    assert mixture.weights.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert bool(mixture.clamped)


def test_positive_cosine_is_not_recorded_as_clamped():
    """An ordinary ratio bears no mark."""
    mixture = solve(equiangular(3, 1e-6))
    assert not mixture.clamped
    assert not mixture.fallback


def test_allow_extrapolates_as_the_formula_says():
    """Under allow, N = 2 at c = -.5 gives t = -2."""
    mixture = solve(equiangular(2, -0.5), negative="allow")
    assert float(mixture.ratio) == pytest.approx(-2.0, abs=ROUNDING)
    assert mixture.weights == pytest.approx([3.0, -1.0, -1.0], abs=ROUNDING)
    assert not mixture.clamped


@pytest.mark.parametrize("c", [0.0, -1e-9, -0.5])
def test_raise_refuses_what_is_not_positive(c):
    """Under raise, c <= 0 is a MethodError."""
    with pytest.raises(errors.MethodError, match="cosine"):
        solve(equiangular(2, c), negative="raise")


def test_raise_lets_positive_cosines_pass():
    """Under raise, c > 0 is as ever."""
    assert float(solve(equiangular(2, 0.5), negative="raise").ratio) == pytest.approx(2 / 3, abs=ROUNDING)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_allow_refuses_the_pole(n):
    """1 + (N-1) c <= 1e-12 is refused under allow, at the pole c = -1/(N-1) and just above it."""
    for c in (-1 / (n - 1), -1 / (n - 1) + 0.5e-12 / (n - 1)):
        with pytest.raises(errors.MethodError, match="pole"):
            solve(equiangular(n, c), negative="allow")


def test_allow_refuses_beyond_the_pole():
    """Mean cosines below the pole (not those of any vectors, but of rounded sums) are refused as well."""
    with pytest.raises(errors.MethodError, match="pole"):
        solve(equiangular(3, -0.6), negative="allow")


def test_allow_accepts_what_lies_clear_of_the_pole():
    """1 + (N-1) c = 1e-6 is far out but is what was asked for."""
    c = -1 + 1e-6
    # The division by 1e-6 magnifies the rounding of c, 1e-16, to 1e-10 of t.
    assert float(solve(equiangular(2, c), negative="allow").ratio) == pytest.approx(2 * c / (1 + c), rel=1e-9)


def test_pole_in_one_group_of_many_is_refused():
    """A batch with one group at the pole is refused as a whole under allow, and clamped there alone by default."""
    grams = np.stack([equiangular(2, 0.5), equiangular(2, -1.0)])
    with pytest.raises(errors.MethodError, match="pole"):
        solve(grams, negative="allow")
    assert solve(grams).clamped.tolist() == [False, True]
    assert solve(grams).ratio == pytest.approx([2 / 3, 0.0], abs=ROUNDING)


def test_cosine_is_clipped_to_one():
    """Inner products that rounding left above |d1||d2| give t = 1, not more."""
    matrix = np.array([[1.0, 1.0 + 1e-9], [1.0 + 1e-9, 1.0]])
    assert float(solve(with_anchor(matrix)).ratio) <= 1.0
    assert float(solve(with_anchor(matrix)).ratio) == pytest.approx(1.0, abs=ROUNDING)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_one_model_that_did_not_move_counts_as_orthogonal(n):
    """|d_1| = 0 but not the others: its cosines count as 0 in the mean over all pairs."""
    lengths = [0.0] + [1.0] * (n - 1)
    matrix = gram_of_cosines([0.5] * (n * (n - 1) // 2), lengths)
    c = 0.5 * (n - 1) * (n - 2) / (n * (n - 1))
    mixture = solve(with_anchor(matrix))
    assert float(mixture.ratio) == pytest.approx(model_stock.ratio_of_cosine(c, n), abs=ROUNDING)
    assert bool(mixture.clamped) == (n == 2)


@pytest.mark.parametrize("negative", ["clamp", "raise", "allow"])
@pytest.mark.parametrize("norms", ["equal", "free"])
@pytest.mark.parametrize("n", [2, 3, 6])
def test_frozen_groups_are_the_base(negative, norms, n):
    """All d_i = 0: weight one for the base, no ratio, nothing clamped, whatever the options."""
    mixture = solve(with_anchor(np.zeros((n, n)), square=3.0), negative=negative, norms=norms)
    assert mixture.weights.tolist() == [1.0] + [0.0] * n
    assert np.isnan(mixture.ratio)
    assert not mixture.clamped
    assert not mixture.fallback


def test_frozen_group_beside_a_moving_one():
    """A frozen group changes nothing about its neighbours in the batch."""
    mixture = solve(np.stack([with_anchor(np.zeros((2, 2))), equiangular(2, 0.5)]), norms="free")
    assert mixture.weights[0].tolist() == [1.0, 0.0, 0.0]
    assert mixture.weights[1] == pytest.approx([1 / 3, 1 / 3, 1 / 3], abs=ROUNDING)


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9])
def test_ratio_grows_with_more_models(c):
    """At one cosine, more models go closer to their average."""
    ratios = [float(solve(equiangular(n, c)).ratio) for n in range(2, 12)]
    assert ratios == sorted(ratios)
    assert ratios[-1] < 1.0
