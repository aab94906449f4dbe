"""Where nothing is to be computed, bytes are kept: agreeing elements, one-hot coefficients, equal inputs."""

import pytest
import torch
from tests.oracles import exact
from tests.oracles.data import FLOATS, merge_one, normal

import stockpot

KEEPING = {
    "linear": (3, False, {}),
    "linear, weights": (3, False, {"weight": [0.3, 0.9, -0.2]}),
    "wise_ft": (1, True, {"alpha": 0.3}),
    "wise_ft, beyond": (1, True, {"alpha": 1.7}),
    "task_arithmetic": (3, True, {"weight": [0.4, 0.3, 0.9]}),
    "task_arithmetic, forgetting": (3, True, {"weight": [-0.4, -0.3, -0.9]}),
    "model_stock": (3, True, {}),
    "model_stock, free": (3, True, {"norms": "free", "negative": "allow"}),
}
"""Methods whose coefficients sum to one: number of models, base or not, parameters."""

ONE_HOT = {
    "linear": (3, False, {"weight": [0.0, 2.0, 0.0]}, 2),
    "linear, one model": (1, False, {}, 1),
    "wise_ft, 0": (1, True, {"alpha": 0.0}, 0),
    "wise_ft, 1": (1, True, {"alpha": 1.0}, 1),
    "task_arithmetic, 0": (2, True, {"weight": [0.0, 0.0]}, 0),
    "task_arithmetic, 1": (2, True, {"weight": [0.0, 1.0]}, 2),
    "slerp, 0": (1, True, {"t": 0.0}, 0),
    "slerp, 1": (1, True, {"t": 1.0}, 1),
}
"""Coefficients that pick one input; its number, the base being 0."""


def special(dtype):
    """Zeros of both signs, subnormals, the extremes, and plain numbers.

    Of float64 not the very extremes: squares must fit the dtype in which inner products end.
    """
    finfo = torch.finfo(dtype)
    least, most = finfo.tiny * finfo.eps, min(finfo.max, 1e150)
    values = [0.0, -0.0, least, -least, 5 * least, finfo.tiny, -finfo.tiny, most, -most, 1 / 3, -7.0]
    return torch.tensor(values, dtype=torch.float64).to(dtype)


def checkpoint(dtype, count):
    """count + 1 random tensors that agree, beginning, middle and end, on every special number."""
    keep = special(dtype)
    tensors = [normal(3000, seed=40 + i, dtype=dtype, scale=0.2) for i in range(count + 1)]
    places = [slice(0, len(keep)), slice(1500, 1500 + len(keep)), slice(3000 - len(keep), 3000)]
    for tensor in tensors:
        for place in places:
            tensor[place] = keep
    return tensors, places, keep


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", KEEPING)
def test_elements_on_which_all_inputs_agree_keep_their_bits(case, dtype):
    """Signed zeros, subnormals and extremes come out as they went in, beside elements that differ."""
    count, takes_base, parameters = KEEPING[case]
    tensors, places, keep = checkpoint(dtype, count)
    merged = merge_one(case.split(",")[0], tensors[0] if takes_base else None, tensors[1:], parameters=parameters)
    for place in places:
        assert exact.same_bits(merged[place], keep)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_keep_the_bits_of_agreeing_elements(dtype):
    """So with a ratio for each row."""
    tensors, places, keep = checkpoint(dtype, 2)
    shaped = [tensor.reshape(3, 1000) for tensor in tensors]
    merged = merge_one("model_stock", shaped[0], shaped[1:], granularity="row").flatten()
    for place in places:
        assert exact.same_bits(merged[place], keep)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", [*KEEPING, "slerp"])
def test_equal_inputs_give_their_bytes(case, dtype):
    """All inputs bitwise equal: their bytes."""
    count, takes_base, parameters = KEEPING.get(case, (1, True, {"t": 0.4}))
    tensor = torch.cat([special(dtype), normal(200, seed=50, dtype=dtype)])
    base = tensor.clone() if takes_base else None
    if "model_stock" in case:
        parameters = {**parameters, "negative": "clamp"}
    merged = merge_one(case.split(",")[0], base, [tensor.clone() for _ in range(count)], parameters=parameters)
    assert exact.same_bits(merged, tensor)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", ONE_HOT)
def test_one_hot_coefficients_copy_bytes(case, dtype):
    """Exactly one input has a part, with weight one: its bytes, though others are larger by powers of ten."""
    count, takes_base, parameters, kept = ONE_HOT[case]
    tensors = [normal(500, seed=60 + i, dtype=dtype, scale=1e3) for i in range(count + 1)]
    tensors[kept] = torch.cat([special(dtype), normal(489, seed=63, dtype=dtype, scale=1e-3)])
    merged = merge_one(case.split(",")[0], tensors[0] if takes_base else None, tensors[1:], parameters=parameters)
    assert exact.same_bits(merged, tensors[kept])


@pytest.mark.parametrize(
    ("dtype", "out"),
    [
        (torch.bfloat16, "float32"),
        (torch.float16, "bfloat16"),
        (torch.float32, "float16"),
        (torch.float32, "float64"),
        (torch.float64, "float32"),
    ],
    ids=str,
)
@pytest.mark.parametrize("case", ONE_HOT)
def test_one_hot_coefficients_convert_exactly(case, dtype, out):
    """With another output dtype, the picked input rounded once: the others, larger by powers of ten, leave no trace."""
    count, takes_base, parameters, kept = ONE_HOT[case]
    tensors = [normal(500, seed=60 + i, dtype=dtype, scale=1e3) for i in range(count + 1)]
    tensors[kept] = torch.cat([torch.tensor([0.0, -0.0]).to(dtype), normal(498, seed=63, dtype=dtype, scale=1e-3)])
    merged = merge_one(
        case.split(",")[0], tensors[0] if takes_base else None, tensors[1:], parameters=parameters, dtype=out
    )
    wanted = torch.from_numpy(exact.rounded(exact.numbers(tensors[kept]), getattr(torch, out))).to(getattr(torch, out))
    assert exact.same_bits(merged, wanted)


@pytest.mark.parametrize("out", ["float32", "bfloat16"])
def test_frozen_and_equal_tensors_convert_exactly(out):
    """Model Stock with another output dtype: w0 where nothing moved, w1 where w1 = w2."""
    base = {"frozen": normal(400, seed=70, dtype=torch.float16), "equal": normal(400, seed=71, scale=1e4).half()}
    moved = {"frozen": base["frozen"], "equal": normal(400, seed=72, scale=1e-4).half()}
    models = [{name: tensor.clone() for name, tensor in moved.items()} for _ in range(2)]
    merged = stockpot.merge_state_dicts("model_stock", base=base, models=models, dtype=out)
    for name in base:
        wanted = exact.rounded(exact.numbers(moved[name]), getattr(torch, out))
        assert exact.numbers(merged[name]).tolist() == wanted.tolist(), name


def test_negative_zero_beside_positive_zero():
    """Zeros of unlike sign among the inputs give a zero."""
    merged = merge_one("linear", None, [torch.tensor([0.0, -0.0]), torch.tensor([-0.0, 0.0])])
    assert merged.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_inputs_are_left_alone(dtype):
    """No input is written to."""
    tensors = [normal(1000, seed=80 + i, dtype=dtype) for i in range(3)]
    kept = [tensor.clone() for tensor in tensors]
    merge_one("model_stock", tensors[0], tensors[1:])
    assert all(exact.same_bits(one, other) for one, other in zip(tensors, kept, strict=True))
