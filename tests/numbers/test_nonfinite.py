"""NaN, Inf and overflow: refused by name and index, or passed through where they stand; never made into numbers."""

import math

import pytest
import torch
from tests.oracles import exact
from tests.oracles.data import FLOATS, fine_tunes, merge_one

import stockpot
from stockpot import errors

from ._law import METHODS

BAD = [math.nan, math.inf, -math.inf]


def state_dicts(method, dtype, shape=(70, 1000)):
    """(base, models) for a method, each with an innocent tensor and the one to be spoiled."""
    count, _, _ = METHODS[method]
    base, models = fine_tunes(count, *shape, seed=5, dtype=dtype, shared=0.1, own=0.1)
    quiet = torch.ones(5, dtype=dtype)
    return {"quiet": quiet, "w": base}, [{"quiet": quiet, "w": model} for model in models]


def merge(method, base, models, **options):
    """Merge with the method's own parameters."""
    _, takes_base, parameters = METHODS[method]
    return stockpot.merge_state_dicts(
        method, base=base if takes_base else None, models=models, parameters=parameters, **options
    )


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("at", [(0, 0), (3, 141), (69, 998)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_refused_with_tensor_and_first_index(method, at, value):
    """The error names the tensor, the input and the first index, and the option that accepts it."""
    for source in (0, -1):
        base, models = state_dicts(method, torch.float32)
        spoiled = ([base, *models] if METHODS[method][1] else models)[source]["w"]
        spoiled[at] = value
        spoiled[69, 999] = math.nan
        with pytest.raises(errors.NonFiniteError) as caught:
            merge(method, base, models)
        assert caught.value.tensor == "w"
        assert str(list(at)) in str(caught.value)
        assert "allow-nonfinite" in str(caught.value)
        expected = "base" if source == 0 and METHODS[method][1] else "model"
        assert expected in str(caught.value.file)


@pytest.mark.parametrize("granularity", ["tensor", "row", "block", "model"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("source", [0, 2])
def test_refused_at_every_granularity(granularity, dtype, source):
    """Model Stock: every dtype, every granularity, base or model."""
    base, models = state_dicts("model_stock", dtype, shape=(4, 50))
    (base, *models)[source]["w"][2, 7] = math.nan
    with pytest.raises(errors.NonFiniteError, match=r"\[2, 7\].*tensor w"):
        merge("model_stock", base, models, granularity=granularity)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("wise_ft", {"alpha": 1.0}),
        ("wise_ft", {"alpha": 0.0}),
        ("task_arithmetic", {"weight": 0.0}),
        ("slerp", {"t": 0.0}),
    ],
)
@pytest.mark.parametrize("source", [0, 1])
def test_refused_in_inputs_without_a_part(method, parameters, source):
    """NaN is refused even where the coefficients take another input's bytes."""
    pair = [torch.ones(300), torch.full((300,), 2.0)]
    pair[source][17] = math.nan
    with pytest.raises(errors.NonFiniteError, match=r"\[17\]"):
        merge_one(method, pair[0], pair[1:], parameters=parameters)


@pytest.mark.parametrize("value", BAD)
def test_refused_where_all_inputs_are_equal(value):
    """A frozen tensor with NaN or Inf is refused too."""
    tensor = torch.ones(200)
    tensor[9] = value
    with pytest.raises(errors.NonFiniteError, match=r"\[9\]"):
        merge_one("model_stock", tensor, [tensor.clone(), tensor.clone()])


def test_refused_in_a_scalar():
    """A 0-d tensor has the empty index."""
    with pytest.raises(errors.NonFiniteError, match="tensor weight"):
        merge_one("linear", None, [torch.tensor(1.0), torch.tensor(math.nan)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_allowed_elements_pass_through_only_there(method, dtype):
    """allow_nonfinite: NaN at its place, finite everywhere else; the innocent tensor keeps its bits."""
    base, models = state_dicts(method, dtype)
    clean = merge(method, base, models)
    models[-1]["w"][3, 141] = math.nan
    merged = merge(method, base, models, allow_nonfinite=True)
    assert torch.isnan(merged["w"]).nonzero().tolist() == [[3, 141]]
    assert torch.isfinite(merged["w"]).sum() == merged["w"].numel() - 1
    assert exact.same_bits(merged["quiet"], clean["quiet"])
    if not method.startswith(("model", "slerp")):
        merged["w"][3, 141] = clean["w"][3, 141]
        assert exact.same_bits(merged["w"], clean["w"])


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_allowed_elements_are_left_out_of_the_ratio(granularity):
    """Model Stock's t is that of the finite elements: the merge equals one in which those elements did not move."""
    base, models = state_dicts("model_stock", torch.float64, shape=(3, 400))
    still = [{name: tensor.clone() for name, tensor in model.items()} for model in models]
    for model, other in zip(models, still, strict=True):
        model["w"][1, 5], model["w"][2, 6] = math.nan, math.inf
        other["w"][1, 5], other["w"][2, 6] = base["w"][1, 5], base["w"][2, 6]
    merged = merge("model_stock", base, models, granularity=granularity, allow_nonfinite=True)["w"]
    expected = merge("model_stock", base, still, granularity=granularity)["w"]
    bad = ~torch.isfinite(merged)
    assert bad.nonzero().tolist() == [[1, 5], [2, 6]]
    # The ratio is summed in the same order, but of vectors with a zero in place of a NaN: the same to rounding.
    assert merged[~bad].numpy() == pytest.approx(expected[~bad].numpy(), abs=1e-14)


@pytest.mark.parametrize("method", ["linear", "wise_ft", "model_stock"])
@pytest.mark.parametrize("everywhere", [True, False], ids=["in all inputs", "in the first input"])
def test_allowed_infinities_stay_infinite(method, everywhere):
    """Inf in all inputs, or in the first of them, passes through as Inf: a positive share of it is infinite."""
    base, models = state_dicts(method, torch.float32)
    inputs = [base, *models] if METHODS[method][1] else models
    for one in inputs if everywhere else inputs[:1]:
        one["w"][7, 8] = math.inf
    merged = merge(method, base, models, allow_nonfinite=True)["w"]
    assert float(merged[7, 8]) == math.inf


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_allowed_nan_in_a_model_without_a_part(granularity):
    """A clamped group takes the base's bytes: NaN in a model does not reach them, whatever the output's dtype."""
    base = torch.zeros(2, 50, dtype=torch.float32)
    step = torch.ones(2, 50)
    models = [base + step, base - step]
    models[1][0, 3] = math.nan
    for dtype in (None, "float64"):
        merged = merge_one("model_stock", base, models, granularity=granularity, allow_nonfinite=True, dtype=dtype)
        assert not merged.any(), dtype


@pytest.mark.parametrize("method", ["wise_ft", "task_arithmetic", "linear"])
def test_overflow_of_float16_is_refused(method):
    """A finite result beyond 65,504 is an error that names tensor and index, never Inf."""
    base, model = torch.zeros(3, 40, dtype=torch.float16), torch.ones(3, 40, dtype=torch.float16)
    model[1, 2] = 60_000.0
    parameters = {
        "wise_ft": {"alpha": 2.0},
        "task_arithmetic": {"weight": 2.0},
        "linear": {"weight": [0.0, 2.0], "normalize": False},
    }[method]
    base, models = (None, [base, model]) if method == "linear" else (base, [model])
    with pytest.raises(errors.NonFiniteError, match=r"\[1, 2\]") as caught:
        merge_one(method, base, models, parameters=parameters)
    assert caught.value.tensor == "weight"
    assert "float16" in str(caught.value)


def test_overflow_of_an_output_dtype_is_refused():
    """float32 numbers that float16 cannot hold are refused under dtype=float16; 65,519 still rounds to its largest."""
    base, model = torch.zeros(10), torch.full((10,), 65_519.0)
    merged = merge_one("wise_ft", base, [model], parameters={"alpha": 1.0}, dtype="float16")
    assert merged.tolist() == [65_504.0] * 10
    model[4] = 65_520.0
    with pytest.raises(errors.NonFiniteError, match=r"\[4\]"):
        merge_one("wise_ft", base, [model], parameters={"alpha": 1.0}, dtype="float16")


def test_values_near_the_largest_are_no_overflow():
    """Sums of float32 and of bfloat16 numbers near the largest are not mistaken for Inf."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        big = torch.full((3000,), torch.finfo(dtype).max, dtype=dtype)
        other = big / 2
        merged = merge_one("linear", None, [big, other])
        assert torch.equal(merged.double(), torch.full((3000,), torch.finfo(dtype).max * 0.75).to(dtype).double())
