"""The formula in wide arithmetic, rounded once: outputs against exact arithmetic with the recorded coefficients."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles import exact
from tests.oracles.data import fine_tunes, merge_one, merge_to_disk, normal

import stockpot

from ._law import METHODS, assert_lawful, merged_and_recorded

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
NARROW = (FP32, BF16, FP16)
MANY = 150_001

KINDS = [
    (BF16, BF16, None),
    (FP16, FP16, None),
    (FP32, FP32, None),
    (FP64, FP64, None),
    (BF16, FP32, None),
    (FP32, BF16, None),
    (FP64, FP32, None),
    (FP16, BF16, None),
    (FP32, FP32, "bfloat16"),
    (FP64, FP64, "float16"),
    (BF16, BF16, "float16"),
]


def kind_id(kind):
    """base-model>output."""
    names = [str(one).removeprefix("torch.") for one in kind]
    return f"{names[0]}-{names[1]}" + (f">{names[2]}" if kind[2] else "")


def cast(base, models, kind):
    """Base and models at the dtypes of a kind."""
    return base.to(kind[0]), [model.to(kind[1]) for model in models]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS, ids=kind_id)
def test_every_element_is_correctly_rounded(tmp_path, method, kind):
    """Fine-tunes a tenth away from their base, in every pairing of dtypes."""
    count, _, parameters = METHODS[method]
    base, models = cast(*fine_tunes(count, MANY, seed=1, shared=0.1, own=0.13), kind)
    out, weights, inputs = merged_and_recorded(tmp_path, method, base, models, parameters=parameters, dtype=kind[2])
    assert out.dtype == (getattr(torch, kind[2]) if kind[2] else kind[1])
    assert_lawful(out, weights, inputs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("step", [1e-3, 3.0], ids=["small steps", "steps beyond the base"])
def test_steps_of_any_size(tmp_path, method, dtype, step):
    """Fine-tunes that hardly moved, and some that moved further than the base is long."""
    count, _, parameters = METHODS[method]
    base, models = fine_tunes(count, MANY, seed=7, dtype=dtype, shared=step, own=1.3 * step)
    out, weights, inputs = merged_and_recorded(tmp_path, method, base, models, parameters=parameters)
    assert_lawful(out, weights, inputs)


@pytest.mark.parametrize("method", ["model_stock", "linear"])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_many_models(tmp_path, method, dtype):
    """Forty fine-tunes: the errors of as many terms do not pile up."""
    base, models = fine_tunes(40, 50_001, seed=5, dtype=dtype, shared=0.1, own=0.13)
    # Weights without a short fraction: multiples of the golden ratio, modulo one.
    parameters = {"weight": [0.1 + 0.6180339887 * i % 1 for i in range(1, 41)]} if method == "linear" else {}
    out, weights, inputs = merged_and_recorded(tmp_path, method, base, models, parameters=parameters)
    assert_lawful(out, weights, inputs)


@pytest.mark.parametrize("dtype", [*NARROW, FP64], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_any_shape(tmp_path, method, dtype):
    """0-d, empty, one element, and odd sizes around the reduction block, in one checkpoint."""
    count, takes_base, parameters = METHODS[method]
    shapes = {
        "scalar": (), "none": (0,), "no columns": (3, 0), "one": (1,), "ones": (1, 1, 1), "few": (3, 5),
        "kernel": (2, 3, 3, 3), "block-1": (65_535,), "block": (65_536,), "block+1": (65_537,),
        "rows": (3, 21_846), "blocks": (131_073,),
    }  # fmt: skip
    checkpoints = [{} for _ in range(count + 1)]
    for number, (name, shape) in enumerate(shapes.items()):
        base, models = fine_tunes(count, *shape, seed=20 * number, dtype=dtype, shared=0.5, own=0.4)
        for tensors, tensor in zip(checkpoints, (base, *models), strict=True):
            tensors[name] = tensor
    tensors, record, _ = merge_to_disk(
        tmp_path, method, checkpoints[0] if takes_base else None, checkpoints[1:], parameters=parameters
    )
    for name, shape in shapes.items():
        assert tensors[name].shape == shape, name
        assert tensors[name].dtype == dtype, name
        if math.prod(shape):
            inputs = [one[name] for one in (checkpoints if takes_base else checkpoints[1:])]
            assert_lawful(tensors[name], np.array(record["groups"][name]["weights"]), inputs)


SHORT = {
    "mean of 3": ("linear", 3, {}),
    "mean of 5": ("linear", 5, {}),
    ".2 .3 .5": ("linear", 3, {"weight": [0.2, 0.3, 0.5]}),
    "alpha .3": ("wise_ft", 1, {"alpha": 0.3}),
    "alpha .1": ("wise_ft", 1, {"alpha": 0.1}),
    "alpha near 113/355": ("wise_ft", 1, {"alpha": 0.3183098862}),
    "task .4 .2": ("task_arithmetic", 2, {"weight": [0.4, 0.2]}),
    "t/N near 1/4": ("model_stock", 3, {}),
}
"""Coefficients near a short fraction: what people type, the mean of 3, and ratios that happen to lie there."""


def short_case(folder, name, dtype):
    """(output, weights, inputs) of one such merge."""
    method, count, parameters = SHORT[name]
    # Equal variances of the shared and the own step: c is near 1/2 and t/N near 1/4.
    base, models = fine_tunes(count, MANY, seed=100, dtype=dtype, shared=0.1, own=0.1)
    return merged_and_recorded(folder, method, base, models, parameters=parameters)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("name", SHORT)
def test_coefficients_near_short_fractions(tmp_path, name, dtype):
    """With coefficients such as 1/3 and .3 many exact results lie within a rounding of half-way: all are right."""
    assert_lawful(*short_case(tmp_path, name, dtype))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("method", ["linear", "wise_ft"])
def test_halves_are_exact(dtype, method):
    """The mean of two is exact before its one rounding: every element is correctly rounded, ties to even."""
    base, models = fine_tunes(2, 20_000, seed=11, dtype=dtype, shared=0.1, own=0.1)
    pair = models if method == "linear" else [base, models[0]]
    merged = merge_one(method, None if method == "linear" else base, models if method == "linear" else models[:1])
    half = exact.combination([0.5, 0.5], pair)
    assert np.array_equal(exact.numbers(merged), exact.rounded(half, dtype))


def test_mean_beyond_the_largest_sum():
    """The mean of numbers whose sum overflows their dtype is finite."""
    for dtype in (FP16, BF16, FP32):
        big = torch.full((5,), torch.finfo(dtype).max, dtype=dtype)
        near = torch.nextafter(big, torch.zeros_like(big)) if dtype != FP16 else big - 32
        merged = merge_one("linear", None, [big, near, big])
        assert torch.isfinite(merged).all()
        # A step of the dtype.
        assert (merged.double() >= near.double()).all()


def test_mean_of_opposite_extremes():
    """Inputs whose difference overflows the wide dtype still have a finite, exact mean."""
    for dtype in (FP16, BF16, FP32):
        big = torch.full((5,), torch.finfo(dtype).max, dtype=dtype)
        assert merge_one("linear", None, [big, -big]).tolist() == [0.0] * 5


def test_large_tensor_in_bfloat16(tmp_path):
    """2^25 elements: Model Stock's ratio and every element still keep the law."""
    size = 1 << 25
    generator = torch.Generator().manual_seed(3)
    base = torch.empty(size, dtype=BF16).normal_(0.0, 0.02, generator=generator)
    models = []
    for _ in range(2):
        step = torch.empty(size, dtype=BF16).normal_(0.001, 0.004, generator=generator)
        models.append(base + step)
    out, weights, inputs = merged_and_recorded(tmp_path, "model_stock", base, models)
    # Every eighth block of 2^16 is compared: four million elements.
    for start in range(0, size, 1 << 19):
        part = slice(start, start + (1 << 16))
        assert exact.wrongly_rounded(out[part], weights, [one[part] for one in inputs]) == []


patterns = st.integers(0, 0x77FF)
"""Bits of every float16 from 0 to half the largest: combinations of them still fit."""
halves = st.builds(
    lambda bits, sign: sign * float(np.uint16(bits).view(np.float16)), patterns, st.sampled_from([1, -1])
)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    values=st.lists(st.tuples(halves, halves, halves), min_size=1, max_size=12),
    dtype=st.sampled_from([FP16, BF16, FP32]),
    alphas=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
)
def test_any_half_precision_values(values, dtype, alphas):
    """Any numbers that float16 holds, subnormals and extremes among them, mixed by any coefficients.

    Each element is the exact sum rounded once.
    """
    inputs = [torch.tensor(column, dtype=FP64).to(dtype) for column in zip(*values, strict=True)]
    weight = [alpha / 4 for alpha in alphas]
    merged = merge_one("task_arithmetic", inputs[0], inputs[1:], parameters={"weight": weight})
    weights = [Fraction(1.0 - math.fsum(weight)), *map(Fraction, weight)]  # as they are recorded
    for at, got in enumerate(exact.numbers(merged).tolist()):
        terms = [Fraction(float(one[at])) for one in inputs]
        total = sum((a * x for a, x in zip(weights, terms, strict=True)), Fraction(0))
        assert got == exact.rounded_fraction(total, dtype), (terms, weight)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    count=st.integers(2, 6),
    shape=st.lists(st.integers(0, 5), max_size=3),
    dtypes=st.tuples(*[st.sampled_from([BF16, FP16, FP32, FP64])] * 2),
    seed=st.integers(0, 10_000),
    granularity=st.sampled_from(["tensor", "row", "block", "model"]),
)
def test_any_model_stock_of_small_tensors(count, shape, dtypes, seed, granularity):
    """Any number of models, shape, dtypes and granularity: the oracle's ratio of each group, applied and rounded."""
    from tests.oracles import model_stock

    base, models = fine_tunes(count, *shape, seed=seed, shared=0.7, own=0.4)
    base, models = base.to(dtypes[0]), [model.to(dtypes[1]) for model in models]
    merged = stockpot.merge_state_dicts(
        "model_stock", base={"w": base}, models=[{"w": model} for model in models], granularity=granularity
    )["w"]
    assert (merged.shape, merged.dtype) == (base.shape, dtypes[1])
    rows = range(base.shape[0]) if granularity == "row" and base.ndim > 1 else [...]
    narrow = all(dtype in (BF16, FP16) for dtype in dtypes)
    for row in rows:
        parts = [model[row] for model in models]
        if not parts[0].numel():
            continue
        expected = model_stock.merge(base[row], parts)
        # A step of the output at that size, and t off by what the law grants, times steps of a few units.
        ulp = np.abs(expected) * 2.0 ** (1 - exact.PRECISION[dtypes[1]])
        error = np.abs(exact.numbers(merged[row]) - expected)
        assert (error <= ulp + (5e-5 if narrow else 1e-10)).all()


def test_oracle_of_scale():
    """The naive float64 formula itself agrees with fractions, so that the tests above lean on something."""
    from tests.oracles import model_stock

    base, models = fine_tunes(3, 40, seed=13)
    gram = exact.gram_of_fractions(base, models)
    t = Fraction(model_stock.ratio([row[1:] for row in gram[1:]]))
    for at, got in enumerate(model_stock.merge(base, models).tolist()):
        terms = [exact.fractions(one)[at] for one in (base, *models)]
        assert got == pytest.approx(float((1 - t) * terms[0] + t * sum(terms[1:]) / 3), abs=1e-15)


def test_normal_numbers_are_the_same_everywhere():
    """The data of these tests is seeded: the same numbers at every call."""
    assert torch.equal(normal(50, seed=3), normal(50, seed=3))
