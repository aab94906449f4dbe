"""linear, wise_ft and task_arithmetic: coefficients and tensors against the one-line formulas."""

import math

import numpy as np
import pytest
import torch
from tests.oracles import linear as oracle
from tests.oracles.data import fine_tunes, merge_one

from stockpot import errors
from stockpot.methods import get_method

# float64 tensors of size one: a rounding or two for each of a few terms.
ROUNDING = 2e-15


@pytest.fixture(scope="module")
def tensors():
    """A base and four models in float64."""
    return fine_tunes(4, 23, 11, seed=5, own=0.5)


def values(tensor):
    """Flat numbers of a merged tensor."""
    return tensor.flatten().numpy()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 49])
def test_linear_defaults_to_the_plain_mean(count):
    """Without weights, each model counts the same."""
    weights = get_method("linear")(count, {}).weights
    assert weights == pytest.approx([1 / count] * count, abs=1e-16)


@pytest.mark.parametrize("weight", [(3.0, 1.0), (1.0, -0.5, 2.0), (0.0, 0.0, 4.0), (1e-30, 3e-30)])
def test_linear_weights_are_normalised(weight):
    """weight_i / sum of weights, whatever their sign or size."""
    expected = [w / math.fsum(weight) for w in weight]
    assert get_method("linear")(len(weight), {"weight": weight}).weights == pytest.approx(expected, rel=1e-15)


def test_linear_without_normalize_takes_weights_as_they_are():
    """normalize=false: the given weights."""
    mixture = get_method("linear")(3, {"weight": (1.0, -0.5, 2.0), "normalize": False})
    assert mixture.weights.tolist() == [1.0, -0.5, 2.0]


@pytest.mark.parametrize("name", ["linear", "task_arithmetic"])
@pytest.mark.parametrize("weight", [(1.0, -1.0), (0.0, 0.0), (0.1, 0.2, -0.3)])
def test_weights_that_sum_to_zero_cannot_be_normalised(name, weight):
    """Zero sum, also where only rounding keeps it from zero: refused, with the remedy."""
    with pytest.raises(errors.ParameterError, match="sum to zero"):
        get_method(name)(len(weight) + (name == "task_arithmetic"), {"weight": weight, "normalize": True})


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("normalize", [True, False])
def test_linear_tensors(tensors, count, normalize):
    """The merged tensor is the weighted sum."""
    weight = [0.7, 0.2, -0.4, 1.9][:count]
    models = tensors[1][:count]
    merged = merge_one("linear", None, models, parameters={"weight": weight, "normalize": normalize})
    assert values(merged) == pytest.approx(oracle.linear(models, weight, normalize), abs=4 * ROUNDING)


def test_linear_mean_of_tensors(tensors):
    """The uniform soup is the mean."""
    merged = merge_one("linear", None, tensors[1])
    assert values(merged) == pytest.approx(oracle.linear(tensors[1]), abs=ROUNDING)


def test_linear_does_not_mix_in_the_base(tensors):
    """--base is a template for a base-free method, never an ingredient."""
    base, models = tensors
    assert torch.equal(merge_one("linear", base, models), merge_one("linear", None, models))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.9, 1.0, -0.5, 1.5])
def test_wise_ft(tensors, alpha):
    """(1 - alpha) w0 + alpha w1, outside [0, 1] too."""
    base, models = tensors
    assert get_method("wise_ft")(2, {"alpha": alpha}).weights == pytest.approx([1 - alpha, alpha], abs=1e-16)
    merged = merge_one("wise_ft", base, models[:1], parameters={"alpha": alpha})
    assert values(merged) == pytest.approx(oracle.wise_ft(base, models[0], alpha), abs=2 * ROUNDING)


def test_wise_ft_defaults_to_half_way(tensors):
    """alpha = .5 where nothing is said."""
    base, models = tensors
    assert values(merge_one("wise_ft", base, models[:1])) == pytest.approx(
        oracle.wise_ft(base, models[0]), abs=ROUNDING
    )


@pytest.mark.parametrize("scale", [1.0, 0.3, -1.0])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weight", [[1.0], [0.5, 0.25], [0.6, -0.2, 0.3, 0.1]])
def test_task_arithmetic(tensors, weight, normalize, scale):
    """w0 + lambda sum_i weight_i (w_i - w0)."""
    base, models = tensors[0], tensors[1][: len(weight)]
    parameters = {"weight": weight, "normalize": normalize, "lambda": scale}
    merged = merge_one("task_arithmetic", base, models, parameters=parameters)
    expected = oracle.task_arithmetic(base, models, weight, scale, normalize)
    assert values(merged) == pytest.approx(expected, abs=3 * ROUNDING)


def test_task_arithmetic_weights():
    """The base takes what is left of one; its weight may be negative."""
    mixture = get_method("task_arithmetic")(3, {"weight": (1.0, 0.5)})
    assert mixture.weights == pytest.approx([-0.5, 1.0, 0.5], abs=1e-16)


def test_one_weight_serves_all_models(tensors):
    """A single value of a per-model parameter is every model's."""
    base, models = tensors
    one = merge_one("task_arithmetic", base, models, parameters={"weight": 0.2})
    many = merge_one("task_arithmetic", base, models, parameters={"weight": [0.2] * 4})
    assert torch.equal(one, many)


def test_weights_follow_the_order_of_the_models(tensors):
    """The first weight is the first model's."""
    models = tensors[1][:2]
    merged = merge_one("linear", None, models, parameters={"weight": [1.0, 0.0]})
    assert torch.equal(merged, models[0])
    assert not np.array_equal(values(merged), values(models[1]))


@pytest.mark.parametrize("weight", [[0.5], [0.5, 0.3, 0.2]])
def test_a_wrong_number_of_weights_is_refused(tensors, weight):
    """One value for all, or one for each: a list of another length is an error."""
    with pytest.raises(errors.ParameterError, match="weight"):
        merge_one("linear", None, tensors[1][:2], parameters={"weight": weight})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_passthrough_is_the_model(dtype):
    """Its bytes, negative zeros too; with a scale, each number times that, rounded once."""
    model = torch.tensor([1.5, -0.0, 3.1, -1e-3, 0.0]).to(dtype)
    kept = merge_one("passthrough", None, [model])
    assert torch.equal(kept.view(torch.uint8), model.view(torch.uint8))
    scaled = merge_one("passthrough", None, [model], parameters={"scale": 0.3})
    assert torch.equal(scaled, (model.double() * 0.3).to(dtype))


def test_passthrough_takes_one_model(tensors):
    """Two are refused."""
    with pytest.raises(errors.MethodError, match="number of models"):
        merge_one("passthrough", None, tensors[1][:2])
