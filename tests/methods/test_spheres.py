"""nuslerp, multislerp and karcher against their definitions on vectors, and against another tool's numbers."""

import numpy as np
import pytest
import torch
from tests.oracles import spheres as oracle
from tests.oracles.data import merge_one, normal

from stockpot import errors

CLOSE = {"rel": 1e-12, "abs": 1e-13}
"""Float64 sums of some dozens of terms of size one, and of an arc cosine."""


def tensors(count, *shape, seed=1, shared=0.7):
    """Vectors at acute angles, of different lengths."""
    common = normal(*shape, seed=seed)
    return [(1 + n / 3) * (shared * common + normal(*shape, seed=seed + 1 + n)) for n in range(count)]


@pytest.mark.parametrize("weight", [(1.0, 1.0), (0.5, 0.3), (2.0, 7.0), (1.0, -0.25)])
def test_nuslerp_of_models(weight):
    """Between the models themselves, at the share of the second's weight."""
    one, two = tensors(2, 6, 5)
    merged = merge_one("nuslerp", None, [one, two], parameters={"weight": list(weight)})
    assert merged.flatten().numpy() == pytest.approx(oracle.nuslerp(one, two, weight), **CLOSE)


def test_nuslerp_of_task_vectors():
    """With a base, between the differences from it; the base is no ingredient."""
    base = normal(6, 5, seed=40)
    one, two = tensors(2, 6, 5)
    merged = merge_one("nuslerp", base, [base + one, base + two], parameters={"weight": [0.5, 0.3]})
    expected = base.flatten().numpy() + oracle.nuslerp((base + one) - base, (base + two) - base, (0.5, 0.3))
    assert merged.flatten().numpy() == pytest.approx(expected, **CLOSE)


def test_nuslerp_row_by_row():
    """Each output channel turns by its own angle."""
    one, two = tensors(2, 6, 5)
    merged = merge_one("nuslerp", None, [one, two], parameters={"weight": [1.0, 2.0]}, granularity="row")
    for row in range(6):
        assert merged[row].numpy() == pytest.approx(oracle.nuslerp(one[row], two[row], (1.0, 2.0)), **CLOSE)


def test_nuslerp_takes_two_models():
    """One or three are refused."""
    with pytest.raises(errors.MethodError, match="number of models"):
        merge_one("nuslerp", None, tensors(3, 4), parameters={"weight": 1.0})


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weight", [(1.0, 1.0, 1.0), (0.5, 0.3, 0.9), (1.0, 0.0, 3.0)])
def test_multislerp_of_models(weight, normalize):
    """The tangent step of the definition is zero: the mean direction, with the weighted mean length."""
    given = tensors(3, 6, 5)
    parameters = {"weight": list(weight), "normalize_weights": normalize}
    merged = merge_one("multislerp", None, given, parameters=parameters)
    assert merged.flatten().numpy() == pytest.approx(oracle.multislerp(given, weight, normalize), **CLOSE)


def test_multislerp_of_task_vectors():
    """With a base, of the differences from it."""
    base = normal(7, seed=50)
    models = [base + one for one in tensors(3, 7)]
    merged = merge_one("multislerp", base, models, parameters={"weight": [0.5, 0.3, 0.9]})
    expected = base.numpy() + oracle.multislerp([one - base for one in models], (0.5, 0.3, 0.9))
    assert merged.numpy() == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("method", ["multislerp", "karcher"])
def test_no_common_direction(method):
    """A vector and its opposite have no mean direction: the plain mean."""
    one = normal(9, seed=60)
    merged = merge_one(method, None, [one, -one], parameters={"weight": 1.0} if method == "multislerp" else {})
    assert merged.abs().max() < 1e-15


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("shared", [0.0, 0.7, 5.0])
@pytest.mark.parametrize("how", [{}, {"max_iter": 1}, {"max_iter": 100, "tol": 1e-12}])
def test_karcher(count, shared, how):
    """The fixed point, or where the steps end before it."""
    given = tensors(count, 6, 5, seed=70, shared=shared)
    merged = merge_one("karcher", None, given, parameters=how)
    assert merged.flatten().numpy() == pytest.approx(oracle.karcher(given, **how), **CLOSE)


def test_karcher_is_the_minimum():
    """Moved a little anywhere on the sphere, the sum of squared angles grows."""
    given = tensors(4, 20, seed=80)
    merged = merge_one("karcher", None, given, parameters={"max_iter": 200, "tol": 1e-12}).numpy()
    units = [one.numpy() / np.linalg.norm(one) for one in given]
    place = merged / np.linalg.norm(merged)

    def spread(point):
        return sum(np.arccos(np.clip(unit @ point / np.linalg.norm(point), -1, 1)) ** 2 for unit in units)

    generator = np.random.default_rng(1)
    for _ in range(50):
        aside = generator.normal(size=20)
        assert spread(place + 1e-3 * aside / np.linalg.norm(aside)) > spread(place)


def test_karcher_of_a_zero_model():
    """It has no direction, and counts in the mean length alone."""
    given = [*tensors(2, 8, seed=90), torch.zeros(8, dtype=torch.float64)]
    merged = merge_one("karcher", None, given)
    assert merged.numpy() == pytest.approx(oracle.karcher(given), **CLOSE)
    assert merged.numpy() == pytest.approx(oracle.karcher(given[:2]) * 2 / 3, **CLOSE)


BASE = (0.5, 1.0, -1.5, 0.75)
MODELS = ((1.0, 2.0, -3.0, 0.5), (2.0, 2.5, -1.0, 0.25), (0.5, 3.0, -2.0, -1.0))
GOLDEN = {
    ("karcher", False): (1.286144166193, 2.677524105587, -2.098658495117, -0.074379188162),
    ("multislerp", False): (0.990657186772, 2.771530344902, -2.219235074405, -0.345283995824),
    ("multislerp", True): (1.041786874909, 2.837553747771, -2.306411184935, -0.412065874417),
    ("nuslerp", True): (1.556699161799, 2.419890714501, -2.358405455073, 0.337235020617),
}
"""What mergekit 0.1.5 makes in float64 of these, with weights .5, .3 and .9 (nuslerp: of the first two)."""


@pytest.mark.parametrize(("method", "with_base"), GOLDEN)
def test_numbers_of_the_field(method, with_base):
    """A recipe that people have gives the numbers that they had."""
    models = [torch.tensor(one, dtype=torch.float64) for one in MODELS][: 2 if method == "nuslerp" else 3]
    base = torch.tensor(BASE, dtype=torch.float64) if with_base else None
    parameters = {} if method == "karcher" else {"weight": [0.5, 0.3, 0.9][: len(models)]}
    merged = merge_one(method, base, models, parameters=parameters)
    assert merged.numpy() == pytest.approx(GOLDEN[method, with_base], abs=1e-8)  # their eps moves the ninth digit


@pytest.mark.parametrize(
    ("angle", "field"), [(0.01, (0.999996875016, 0.002499997396)), (3.13, (0.709153120, 0.705054503))]
)
def test_nuslerp_follows_small_arcs(angle, field):
    """Unlike slerp, to the numbers of another tool, which has no plain interpolation for nearly parallel vectors."""
    one, two = torch.tensor([1.0, 0.0]).double(), torch.tensor([np.cos(angle), np.sin(angle)])
    merged = merge_one("nuslerp", None, [one, two], parameters={"weight": [3.0, 1.0]})
    assert merged.tolist() == pytest.approx([np.cos(angle / 4), np.sin(angle / 4)], abs=1e-12)
    assert merged.tolist() == pytest.approx(field, abs=1e-8)
