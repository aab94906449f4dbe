"""Model Stock on constructed tensors: the exact projection, the orthocentre, the Gaussian toy, the invariances."""

import itertools

import numpy as np
import pytest
import torch
from tests.oracles import exact, model_stock
from tests.oracles.data import fine_tunes, gram_of_cosines, merge_one, merge_to_disk, normal, vectors_of_gram

from stockpot.measure import cosines
from stockpot.methods import get_method

DIMENSION = 60
TOY = 10_000


def equiangular(n, c, length, seed):
    """(base, models, centre): d_i of one length and one pairwise cosine; <d_i, mu - w0> = |mu - w0|^2 = c length^2.

    The part of mu - w0 in the span of the d_i has coefficients a with G a = c length^2 1; the rest is orthogonal.
    """
    matrix = gram_of_cosines([c] * (n * (n - 1) // 2), [length] * n)
    rows = torch.from_numpy(vectors_of_gram(matrix, DIMENSION, seed))
    base = normal(DIMENSION, seed=seed + 1)
    inside = torch.from_numpy(np.linalg.solve(matrix, np.full(n, c * length**2))) @ rows
    outside = normal(DIMENSION, seed=seed + 2)
    frame, _ = torch.linalg.qr(rows.T)
    outside -= frame @ (frame.T @ outside)
    outside *= torch.sqrt(c * length**2 - inside @ inside) / outside.norm()
    return base, [base + row for row in rows], base + inside + outside


def square(vector):
    """|v|^2."""
    return float(vector @ vector)


@pytest.mark.parametrize("length", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(("n", "c"), [(2, 0.5), (2, 0.25), (3, 0.5), (4, 0.5), (5, 0.25), (10, 0.25), (3, 0.95)])
class TestExactConstruction:
    """Section 3's equiangular construction by Cholesky.

    Tolerances: rounding in float64 of sums of sixty products, and of base + d_i, whose base is of size one: relative
    to length^2 that is 1e-15 / length.
    """

    def test_result_is_the_projection_of_the_centre(self, n, c, length):
        """The least-squares projection of mu - w0 on the span of d_i has all coefficients t / N, and is the result."""
        base, models, centre = equiangular(n, c, length, seed=11)
        t = model_stock.ratio_of_cosine(c, n)
        steps = torch.stack([model - base for model in models])
        a = torch.linalg.lstsq(steps.T, (centre - base)[:, None]).solution[:, 0]
        assert a.tolist() == pytest.approx([t / n] * n, abs=1e-11)
        merged = merge_one("model_stock", base, models)
        assert (merged - base).tolist() == pytest.approx((a @ steps).tolist(), abs=1e-11 * length)

    def test_distances_to_centre_and_base(self, n, c, length):
        """|w_H-mu|^2 = c l^2 (1-t); |m-mu|^2 = l^2 (1-c)/N; their ratio is t; |w_H-w0|^2 = c l^2 t."""
        base, models, centre = equiangular(n, c, length, seed=12)
        t = model_stock.ratio_of_cosine(c, n)
        merged = merge_one("model_stock", base, models)
        mean = merge_one("linear", None, models)
        slack = 1e-11 * length**2
        assert square(merged - centre) == pytest.approx(c * length**2 * (1 - t), abs=slack)
        assert square(mean - centre) == pytest.approx(length**2 * (1 - c) / n, abs=slack)
        assert square(merged - centre) / square(mean - centre) == pytest.approx(t, rel=1e-9)
        assert square(merged - base) == pytest.approx(c * length**2 * t, abs=slack)

    def test_result_is_the_foot_of_the_perpendicular(self, n, c, length):
        """mu - w_H is orthogonal to every w_i - w0."""
        base, models, centre = equiangular(n, c, length, seed=13)
        merged = merge_one("model_stock", base, models)
        for model in models:
            assert float((centre - merged) @ (model - base)) == pytest.approx(0.0, abs=1e-11 * length**2)


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9])
def test_two_models_of_equal_norm_give_the_orthocentre(c):
    """w_H is the orthocentre of the triangle (w0, w1, w2)."""
    base, models, _ = equiangular(2, c, 1.0, seed=14)
    merged = merge_one("model_stock", base, models)
    corners = [base, *models]
    for i in range(3):
        opposite = corners[(i + 1) % 3] - corners[(i + 2) % 3]
        # Rounding of sixty products of numbers near one.
        assert float((merged - corners[i]) @ opposite) == pytest.approx(0.0, abs=1e-13)


def toy(n, r, seed, s=1.0, d=TOY):
    """(base, models, centre) of the Gaussian toy: w_i = mu + s z / sqrt(d), |mu - w0| = r."""
    base = normal(d, seed=seed)
    step = normal(d, seed=seed + 1)
    centre = base + step * (r / step.norm())
    return base, [centre + normal(d, seed=seed + 2 + i) * (s / d**0.5) for i in range(n)], centre


def distance(one, other):
    """|one - other|."""
    return float((one - other).norm())


@pytest.mark.parametrize(
    ("r", "n", "ratio", "mean", "stock"),
    [
        (1.0, 2, 2 / 3, 0.7071, 0.5774),
        (1.0, 3, 0.75, 0.577, 0.500),
        (1.0, 4, 0.8, 0.500, 0.447),
        (0.3, 2, 0.09 / (0.09 + 0.5), 0.707, 0.276),
    ],
)
def test_gaussian_toy(r, n, ratio, mean, stock):
    """t -> r^2/(r^2 + s^2/N), and the distances to the centre, averaged over eight draws, meet the stated numbers."""
    found = []
    for seed in range(8):
        base, models, centre = toy(n, r, 1000 * seed)
        merged = merge_one("model_stock", base, models)
        t = float((merged - base) @ (sum(models) / n - base) / square(sum(models) / n - base))
        found.append(
            [
                t,
                distance(merge_one("linear", None, models), centre),
                distance(merged, centre),
                distance(models[0], centre),
            ]
        )
    averages = np.mean(found, axis=0)
    # One cosine has sd .007 (the stated one for d = 1e4; .01 at r = .3, where noise outweighs the signal), and
    # dt/dc <= 1.7 there; over eight draws, four sd of the mean are .025. Distances vary by 1/sqrt(2d) = .007, the
    # stock's also by its t.
    assert averages[0] == pytest.approx(ratio, abs=0.025)
    assert averages[1] == pytest.approx(mean, abs=0.01)
    assert averages[2] == pytest.approx(stock, abs=0.01)
    assert averages[3] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("d", "sd"), [(100, 0.067), (1000, 0.020), (10_000, 0.007)])
def test_spread_of_the_cosine(d, sd):
    """The cosine of the toy has sd .067, .020, .007 at d = 1e2, 1e3, 1e4, around r^2/(r^2+s^2)."""
    draws = 150
    grams = []
    for seed in range(draws):
        base, models, _ = toy(2, 1.0, 10_000 + 10 * seed, d=d)
        grams.append(exact.gram(base, models))
    values = cosines(np.stack(grams))[:, 0, 1]
    # A sample sd over 150 draws has a relative sd of 6 %: three of them, and the half digit of the stated numbers.
    assert values.std(ddof=1) == pytest.approx(sd, rel=0.25)
    # The mean over the draws, four of its sd; the cosine's bias is of order 1/d.
    assert values.mean() == pytest.approx(0.5, abs=4 * sd / draws**0.5 + 2 / d)


def test_best_point_on_the_line_is_alpha_equal_cosine():
    """WiSE-FT in the toy: the nearest point to the centre on the line w0-w1 is at alpha = c = r^2/(r^2+s^2)."""
    alphas = np.linspace(0.3, 0.7, 41)
    distances = np.zeros(len(alphas))
    for seed in range(6):
        base, (model,), centre = toy(1, 1.0, 100 * seed)
        for i, alpha in enumerate(alphas):
            merged = merge_one("wise_ft", base, [model], parameters={"alpha": float(alpha)})
            distances[i] += distance(merged, centre)
    # The grid has steps of .01, and <d1, mu - w0>/|d1|^2 an sd of .005 a draw.
    assert alphas[distances.argmin()] == pytest.approx(0.5, abs=0.0201)


def test_mean_of_models_in_a_quadratic_bowl():
    """L = (w-mu)^T A (w-mu)/2 with w_i ~ N(mu, S): the mean of N has expected loss tr(AS)/(2N)."""
    samples, d, n = 4000, 20, 4
    curvature, spread = torch.linspace(0.5, 2.0, d).double(), torch.linspace(1.5, 0.2, d).double()
    centre = normal(d, seed=21)
    models = [centre + normal(samples, d, seed=22 + i) * spread.sqrt() for i in range(n)]
    mean = merge_one("linear", None, models)
    loss = float(((mean - centre) ** 2 * curvature).sum(dim=1).mean() / 2)
    # The mean over 4000 samples of a weighted chi-square of twenty terms has a relative sd of .6 %: four of them.
    assert loss == pytest.approx(float((curvature * spread).sum()) / (2 * n), rel=0.024)


def ratio_on_disk(folder, base, models, **options):
    """The recorded ratio of a merge of single tensors."""
    _, record, _ = merge_to_disk(folder, "model_stock", {"w": base}, [{"w": model} for model in models], **options)
    return record["groups"]["w"]["ratio"]


def test_order_of_models_does_not_matter(tmp_path):
    """Every order of four models gives one ratio and one result, to rounding."""
    base, models = fine_tunes(4, 50, 7, seed=31, own=0.8)
    expected, merged = ratio_on_disk(tmp_path / "first", base, models), merge_one("model_stock", base, models)
    for number, order in enumerate(itertools.permutations(models)):
        if number % 5 == 0:
            # Sums of six cosines in another order.
            assert ratio_on_disk(tmp_path / str(number), base, order) == pytest.approx(expected, abs=1e-14)
        # One rounding of sums of four terms of size one, in another order.
        assert merge_one("model_stock", base, order).numpy() == pytest.approx(merged.numpy(), abs=1e-14)


def test_shift_of_everything_shifts_the_result(tmp_path):
    """Adding one vector to w0 and all w_i leaves t as it is, bit for bit where the sums are exact, and moves w_H."""
    base = (1024 * normal(900, seed=41)).round()
    shared = (512 * normal(900, seed=42)).round()
    models = [base + shared + (512 * normal(900, seed=43 + i)).round() for i in range(3)]
    shift = (4096 * normal(900, seed=49)).round()
    moved = [model + shift for model in models]
    assert ratio_on_disk(tmp_path / "a", base, models) == ratio_on_disk(tmp_path / "b", base + shift, moved)
    expected = merge_one("model_stock", base, models) + shift
    # One rounding each of numbers up to 2^14.
    assert merge_one("model_stock", base + shift, moved).numpy() == pytest.approx(expected.numpy(), abs=2.0**-37)


def test_rotation_rotates_the_result(tmp_path):
    """Rotating the flattened tensors leaves t as it is and rotates w_H."""
    base, models = fine_tunes(3, 80, seed=51, own=0.7)
    rotation, _ = torch.linalg.qr(normal(80, 80, seed=52))
    turned = [rotation @ model for model in models]
    expected = ratio_on_disk(tmp_path / "a", base, models)
    # A product with an 80 x 80 orthogonal matrix rounds at 1e-15 an element.
    assert ratio_on_disk(tmp_path / "b", rotation @ base, turned) == pytest.approx(expected, abs=1e-13)
    merged = rotation @ merge_one("model_stock", base, models)
    assert merge_one("model_stock", rotation @ base, turned).numpy() == pytest.approx(merged.numpy(), abs=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("around", [0.0, 1.0], ids=["base 0", "base of the deltas' scale"])
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_scale_of_the_deltas_does_not_matter(tmp_path, dtype, around, scale):
    """d -> a d leaves t as it is, for a from 1e-12 to 1e+12."""
    base, models = fine_tunes(3, 33, 65, seed=61, shared=0.5, own=0.7, around=around)
    expected = model_stock.ratio(exact.gram(base, models)[1:, 1:])
    scaled = [(tensor * scale).to(dtype) for tensor in (base, *models)]
    # Storing a x in the dtype rounds every element at 2^-24 or 2^-53; over 2145 of them t moves by less.
    slack = 1e-7 if dtype == torch.float32 else 1e-13
    ratio = ratio_on_disk(tmp_path, scaled[0], scaled[1:])
    assert ratio == pytest.approx(expected, abs=slack)
    assert ratio == pytest.approx(model_stock.ratio(exact.gram(scaled[0], scaled[1:])[1:, 1:]), abs=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_layers_are_independent(dtype):
    """What one layer holds changes no bit of another."""
    import stockpot

    base, models = fine_tunes(2, 64, 9, seed=71, dtype=dtype, own=0.5)
    other = [normal(300, seed=75 + i, dtype=dtype) for i in range(3)]
    alone = merge_one("model_stock", base, models)
    for scale in (1.0, 1e9):
        merged = stockpot.merge_state_dicts(
            "model_stock",
            base={"a": other[0] * scale, "weight": base},
            models=[{"a": o * scale, "weight": m} for o, m in zip(other[1:], models, strict=True)],
        )
        assert exact.same_bits(merged["weight"], alone)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_result_is_the_formula_on_tensors(n):
    """w_H = t m + (1 - t) w0 by the naive oracle, for tensors of unequal lengths and angles."""
    base, models = fine_tunes(n, 31, 17, seed=81, shared=0.6, own=0.9)
    expected = model_stock.merge(base, models)
    # Float64 rounding of four terms of size one.
    assert merge_one("model_stock", base, models).flatten().numpy() == pytest.approx(expected, abs=1e-14)


def test_ratio_is_called_what_the_method_gives(tmp_path):
    """The recorded ratio and weights are those of the method on the oracle's Gram matrix."""
    base, models = fine_tunes(3, 12, 12, seed=91)
    mixture = get_method("model_stock")(exact.gram(base, models), {})
    _, record, result = merge_to_disk(tmp_path, "model_stock", {"w": base}, [{"w": model} for model in models])
    assert record["groups"]["w"]["ratio"] == pytest.approx(float(mixture.ratio), abs=1e-13)
    assert record["groups"]["w"]["weights"] == pytest.approx(mixture.weights, abs=1e-13)
    assert result.ratio.min == result.ratio.median == result.ratio.max == record["groups"]["w"]["ratio"]
    assert (result.ratio.clamped, result.ratio.count) == (0, 1)
