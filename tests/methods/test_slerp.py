"""slerp: coefficients and tensors against the formula."""

import math

import numpy as np
import pytest
import torch
from tests.oracles import exact
from tests.oracles import linear as oracle
from tests.oracles.data import FLOATS, HALVES, merge_one, merge_to_disk, normal


def recorded_weights(folder, one, two, t):
    """The weights of a merge of two tensors."""
    _, record, _ = merge_to_disk(folder, "slerp", {"w": one}, [{"w": two}], parameters={"t": t})
    return np.array(record["groups"]["w"]["weights"])


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_weights_follow_the_formula(tmp_path, dtype, t):
    """sin((1-t) theta)/sin(theta) and sin(t theta)/sin(theta)."""
    one, two = normal(777, seed=1, dtype=dtype), normal(777, seed=2, dtype=dtype, scale=1.3)
    two = (two + one / 2).to(dtype)
    # Inner products as exact as those of every method: 1e-11 for wide inputs, 1e-6 for narrow ones.
    slack = 1e-6 if dtype in HALVES else 1e-11
    assert recorded_weights(tmp_path, one, two, t) == pytest.approx(oracle.slerp_weights(one, two, t), abs=slack)


@pytest.mark.parametrize("longer", [1e-6, 1e-4, 1e-2, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_lengths_do_not_matter_to_the_angle(tmp_path, dtype, longer):
    """The angle between a tensor and one much longer or shorter is as exact as between equals."""
    one = normal(500, seed=3, dtype=dtype)
    two = ((normal(500, seed=4) + 0.5 * one.double()) * longer).to(dtype)
    slack = 1e-6 if dtype in HALVES else 1e-11
    assert recorded_weights(tmp_path, one, two, 0.3) == pytest.approx(oracle.slerp_weights(one, two, 0.3), abs=slack)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.7])
def test_tensors_follow_the_formula(t):
    """The merged tensor is the weighted sum of the two."""
    one, two = normal(20, 30, seed=5), normal(20, 30, seed=6)
    merged = merge_one("slerp", one, [two], parameters={"t": t})
    # Float64 rounding of two terms of size one, and of the angle.
    assert merged.flatten().numpy() == pytest.approx(oracle.slerp(one, two, t), abs=1e-14)


def test_two_models_without_a_base():
    """Without a base, t = 0 is the first model."""
    one, two = normal(50, seed=7), normal(50, seed=8)
    with_base = merge_one("slerp", one, [two], parameters={"t": 0.25})
    assert torch.equal(merge_one("slerp", None, [one, two], parameters={"t": 0.25}), with_base)


@pytest.mark.parametrize("angle", [0.3, 1.0, math.pi / 2, 2.5])
@pytest.mark.parametrize("t", [0.25, 0.5])
def test_unit_vectors_stay_on_the_sphere(angle, t):
    """Between unit vectors the result has length one and stands at t theta from the first."""
    one = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    two = torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64)
    merged = merge_one("slerp", one, [two], parameters={"t": t})
    # Rounding of sines, magnified by 1/sin(theta) up to 3.4.
    assert merged.tolist() == pytest.approx([math.cos(t * angle), math.sin(t * angle), 0.0], abs=1e-14)


@pytest.mark.parametrize(("t", "kept"), [(0.0, 0), (1.0, 1)])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_ends_are_the_inputs_bytes(dtype, t, kept):
    """t = 0 is the first's bytes, t = 1 the other's."""
    pair = [normal(300, seed=9 + i, dtype=dtype) for i in range(2)]
    pair[0][:2] = pair[1][4:6] = torch.tensor([0.0, -0.0])
    assert exact.same_bits(merge_one("slerp", pair[0], pair[1:], parameters={"t": t}), pair[kept])


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("cosine", "plain"), [(0.9996, True), (0.9994, False)])
def test_nearly_parallel_is_plain_interpolation(tmp_path, cosine, plain, sign):
    """Beyond |cos| = .9995 the weights are 1 - t and t, in either direction."""
    one = torch.tensor([1.0, 0.0], dtype=torch.float64)
    two = sign * torch.tensor([cosine, (1 - cosine**2) ** 0.5], dtype=torch.float64)
    weights = recorded_weights(tmp_path, one, two, 0.3)
    if plain:
        assert weights == pytest.approx([0.7, 0.3], abs=1e-16)
    else:
        # An angle of .03 from its cosine in float64: 1e-16 / sin^2(theta), again over sin(theta).
        assert weights == pytest.approx(oracle.slerp_weights(one, two, 0.3), rel=1e-10)
        assert weights[0] != pytest.approx(0.7, abs=1e-6)


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_zero_tensors_are_interpolated_plainly(zero):
    """Where one input, or both, is zero, there is no angle: 1 - t and t."""
    pair = [normal(9, seed=11), normal(9, seed=12)]
    for i in range(2):
        if zero in (i, 2):
            pair[i] = torch.zeros(9, dtype=torch.float64)
    merged = merge_one("slerp", pair[0], pair[1:], parameters={"t": 0.25})
    # Rounding of two terms of size one.
    assert merged.numpy() == pytest.approx((0.75 * pair[0] + 0.25 * pair[1]).numpy(), abs=1e-15)


def test_each_tensor_has_its_own_angle():
    """The angle is the tensor's, not the model's."""
    import stockpot

    pairs = {"a": (normal(40, seed=13), normal(40, seed=14)), "b": (normal(40, seed=15), normal(40, seed=15) + 0.5)}
    merged = stockpot.merge_state_dicts(
        "slerp",
        base={name: pair[0] for name, pair in pairs.items()},
        models=[{name: pair[1] for name, pair in pairs.items()}],
        parameters={"t": 0.4},
    )
    for name, (one, two) in pairs.items():
        # Float64 rounding of two terms of size one, and of the angle.
        assert merged[name].numpy() == pytest.approx(oracle.slerp(one, two, 0.4), abs=1e-13)
