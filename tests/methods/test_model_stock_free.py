"""norms=free: G a = s 1, its closed form, its golden numbers, non-negative least squares, the singular fallback."""

import numpy as np
import pytest
from tests.oracles import model_stock
from tests.oracles.data import gram_of_cosines, merge_one, normal, vectors_of_gram, with_anchor

from stockpot import errors
from stockpot.methods import get_method

WILD = gram_of_cosines([0.9, 0.5, 0.8])


def solve(matrix, **values):
    """Model Stock with norms=free on a Gram matrix over the task vectors."""
    return get_method("model_stock")(with_anchor(matrix, 1.0), {"norms": "free", **values})


def random_gram(n, seed, shared=0.8):
    """A well-conditioned Gram matrix of unequal lengths and angles."""
    vectors = normal(n, n + 4, seed=seed).numpy() + shared
    return vectors @ vectors.T


def test_golden_coefficients_for_unequal_cosines():
    """Equal norms, cosines .9, .5, .8: a = (2.93, -3.67, 2.20), as derived by hand."""
    assert solve(WILD, negative="allow").weights[1:].round(2).tolist() == [2.93, -3.67, 2.2]


def test_golden_coefficients_in_exact_terms():
    """The same three numbers as fractions: s = 11/15, a = (44/15, -11/3, 11/5)."""
    # One solve of a 3 x 3 system of condition 200.
    assert solve(WILD, negative="allow").weights[1:] == pytest.approx([44 / 15, -11 / 3, 11 / 5], rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_two_models_follow_the_closed_form(seed):
    """a1 = g12 (g22 - g12) / D, a2 = g12 (g11 - g12) / D."""
    matrix = random_gram(2, seed)
    expected = model_stock.free_coefficients_of_two(matrix)
    # Condition numbers up to 1e3 times float64 rounding.
    assert solve(matrix, negative="allow").weights[1:] == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("seed", range(4))
def test_allow_solves_the_system(n, seed):
    """G a = s 1 holds, and the base takes what is left of one."""
    matrix = random_gram(n, 20 * n + seed)
    mixture = solve(matrix, negative="allow")
    a = mixture.weights[1:]
    s = model_stock.mean_inner_product(matrix)
    # A backward stable solve leaves a residual of a few roundings of |G| |a|.
    assert matrix @ a == pytest.approx(np.full(n, s), abs=1e-13 * np.abs(matrix).sum() * np.abs(a).max())
    assert mixture.weights.sum() == pytest.approx(1.0, abs=1e-14 * np.abs(a).sum() + 1e-14)
    assert not mixture.clamped
    assert not mixture.fallback


@pytest.mark.parametrize(("n", "c"), [(2, 0.5), (3, 0.5), (4, 0.2), (6, 0.9)])
@pytest.mark.parametrize("length", [1e-12, 1.0, 1e12])
def test_equal_norms_and_cosines_give_the_papers_ratio(n, c, length):
    """Where norms and pairwise cosines are equal, free and equal are the same."""
    matrix = gram_of_cosines([c] * (n * (n - 1) // 2), [length] * n)
    t = model_stock.ratio_of_cosine(c, n)
    mixture = solve(matrix)
    assert mixture.weights == pytest.approx([1 - t] + [t / n] * n, abs=1e-13)
    assert not mixture.clamped
    assert not mixture.fallback


@pytest.mark.parametrize("scale", [1e-24, 1e-12, 1e12, 1e24])
@pytest.mark.parametrize("negative", ["clamp", "allow"])
def test_scale_does_not_matter(scale, negative):
    """Gram matrices of tiny and of huge deltas have the coefficients of ordinary ones."""
    for matrix in (WILD, random_gram(4, 3)):
        ordinary = solve(matrix, negative=negative).weights
        assert solve(matrix * scale, negative=negative).weights == pytest.approx(ordinary, rel=1e-10, abs=1e-12)


def test_clamp_gives_the_non_negative_solution_of_the_wild_case():
    """Cosines .9, .5, .8 under clamp: the non-negative least-squares solution, recorded as clamped."""
    mixture = solve(WILD)
    assert bool(mixture.clamped)
    assert mixture.weights[1:] == pytest.approx(model_stock.nonnegative_coefficients(WILD), abs=1e-12)
    assert (mixture.weights[1:] >= 0).all()


def wild_grams():
    """Regular Gram matrices whose plain solution has a negative coefficient though s > 0."""
    found = []
    for n in (2, 3, 4, 5, 6):
        for seed in range(400):
            matrix = random_gram(n, 1000 * n + seed, shared=0.9)
            wild = (model_stock.free_coefficients(matrix) < 0).any()
            if wild and model_stock.mean_inner_product(matrix) > 0 and not model_stock.is_singular(matrix):
                found.append(matrix)
                if sum(len(one) == n for one in found) == 4:
                    break
    return found


@pytest.mark.parametrize("matrix", wild_grams(), ids=lambda m: f"n{len(m)}")
def test_clamp_meets_the_optimality_conditions(matrix):
    """a >= 0, gradient >= 0, and their product zero: the conditions of Karush, Kuhn and Tucker, without a solver."""
    mixture = solve(matrix)
    a = mixture.weights[1:]
    s = model_stock.mean_inner_product(matrix)
    gradient = matrix.T @ (matrix @ a - s)
    # Each entry is a sum of products as large as |G|^2 |a| and G^T s.
    slack = 1e-12 * np.abs(matrix).max() ** 2 * len(a) ** 2 * max(1.0, np.abs(a).max())
    assert bool(mixture.clamped)
    assert (a >= 0).all()
    assert (gradient >= -slack).all()
    assert (np.abs(gradient[a > 0]) <= slack).all()


@pytest.mark.parametrize("matrix", wild_grams(), ids=lambda m: f"n{len(m)}")
def test_clamp_is_the_best_of_all_supports(matrix):
    """No set of coefficients held at zero does better: the oracle tries them all."""
    a = solve(matrix).weights[1:]
    expected = model_stock.nonnegative_coefficients(matrix)
    s = model_stock.mean_inner_product(matrix)
    ours, best = np.linalg.norm(matrix @ a - s), np.linalg.norm(matrix @ expected - s)
    # Where two supports tie, either is right: it is the residual that is least, to rounding.
    assert ours <= best * (1 + 1e-10) + 1e-12 * s


def test_non_negative_solutions_are_left_alone():
    """A solution without negative coefficients is not marked."""
    matrix = gram_of_cosines([0.5, 0.45, 0.55], [1.0, 1.1, 0.9])
    mixture = solve(matrix)
    assert not mixture.clamped
    assert mixture.weights[1:] == pytest.approx(model_stock.free_coefficients(matrix), rel=1e-12)


@pytest.mark.parametrize("cosines", [[-0.5], [0.0], [0.3, -0.4, 0.1], [-0.2, -0.2, -0.2]])
def test_no_shared_direction_gives_the_base(cosines):
    """s <= 0 under clamp: the base, recorded."""
    mixture = solve(gram_of_cosines(cosines))
    assert mixture.weights.tolist() == [1.0] + [0.0] * (len(mixture.weights) - 1)
    assert bool(mixture.clamped)


def test_sign_is_that_of_inner_products_not_of_cosines():
    """s is the mean of inner products: a long opposed pair outweighs short agreeing ones."""
    matrix = gram_of_cosines([-0.5, 0.3, 0.3], [10.0, 10.0, 0.1])
    assert model_stock.mean_cosine(matrix) > 0 > model_stock.mean_inner_product(matrix)
    assert solve(matrix).weights.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_raise_refuses_no_shared_direction():
    """Under raise, s <= 0 is a MethodError."""
    with pytest.raises(errors.MethodError):
        solve(gram_of_cosines([-0.5]), negative="raise")


@pytest.mark.parametrize("negative", ["clamp", "raise", "allow"])
@pytest.mark.parametrize(
    "matrix",
    [
        gram_of_cosines([1.0, 0.5, 0.5]),
        gram_of_cosines([1 - 1e-7], [3.0, 5.0]),
        gram_of_cosines([0.5, 0.5, 0.5], [1.0, 1.0, 0.0]),
        gram_of_cosines([1.0, 0.5, 0.5], [1e-12, 1e-12, 2e-12]),
    ],
    ids=["two equal", "nearly parallel", "one unmoved", "two equal and tiny"],
)
def test_singular_groups_fall_back_to_equal(matrix, negative):
    """Least eigenvalue, at unit diagonal, below 1e-6: the coefficients of norms=equal, recorded as a fallback."""
    mixture = solve(matrix, negative=negative)
    equal = get_method("model_stock")(with_anchor(matrix, 1.0), {"negative": negative})
    assert bool(mixture.fallback)
    assert not equal.fallback
    assert mixture.weights.tolist() == equal.weights.tolist()


def test_singular_is_judged_at_unit_diagonal():
    """Lengths 1e-6 and 1e+6 at cosine .5 are as regular as equal ones."""
    matrix = gram_of_cosines([0.5], [1e-6, 1e6])
    assert not solve(matrix, negative="allow").fallback


@pytest.mark.parametrize(("eigenvalue", "falls"), [(0.9e-6, True), (1.1e-6, False)])
def test_singular_begins_at_one_in_a_million(eigenvalue, falls):
    """Two models have least eigenvalue 1 - c: the line lies at 1e-6."""
    assert bool(solve(gram_of_cosines([1 - eigenvalue])).fallback) is falls


def test_fallback_is_clamped_like_equal():
    """A singular group with c <= 0 stays at the base, marked as both."""
    mixture = solve(gram_of_cosines([-1.0]))
    assert mixture.weights.tolist() == [1.0, 0.0, 0.0]
    assert bool(mixture.fallback)
    assert bool(mixture.clamped)


@pytest.mark.parametrize("lengths", [(1.0, 1.0), (1.0, 1.3), (0.5, 2.0)])
@pytest.mark.parametrize("c", [0.1, 0.4, 0.45])
def test_two_models_give_the_orthocentre(lengths, c):
    """For unequal norms too, w_H is the orthocentre of (w0, w1, w2): every altitude passes through it."""
    rows = vectors_of_gram(gram_of_cosines([c], lengths), 12, seed=5)
    base = normal(12, seed=6)
    models = [base + row for row in map(base.new_tensor, rows)]
    merged = merge_one("model_stock", base, models, parameters={"norms": "free", "negative": "allow"})
    corners = [base, *models]
    for i in range(3):
        opposite = corners[(i + 1) % 3] - corners[(i + 2) % 3]
        # Float64 rounding of a dozen products of numbers near one.
        assert float((merged - corners[i]) @ opposite) == pytest.approx(0.0, abs=1e-13)


@pytest.mark.parametrize("negative", ["clamp", "allow"])
def test_merge_uses_the_free_coefficients(negative):
    """The merged tensor is w0 + sum a_i d_i with the oracle's a."""
    rows = vectors_of_gram(WILD, 40, seed=8)
    base = normal(40, seed=9)
    models = [base + row for row in map(base.new_tensor, rows)]
    a = model_stock.free_coefficients(WILD) if negative == "allow" else model_stock.nonnegative_coefficients(WILD)
    merged = merge_one("model_stock", base, models, parameters={"norms": "free", "negative": negative})
    # The Gram matrix has condition 200: rounding of the stored fine-tunes reaches a magnified so much.
    assert (merged - base).numpy() == pytest.approx(a @ rows, abs=1e-11)
