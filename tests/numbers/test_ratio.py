"""t against exactly summed inner products: 1e-11 for float32 and wider inputs, 1e-6 for narrower ones."""

import math

import numpy as np
import pytest
import torch
from tests.oracles import exact, model_stock
from tests.oracles.data import FLOATS, HALVES, fine_tunes, merge_to_disk, normal

import stockpot
from stockpot import errors

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def recorded_ratio(folder, base, models, **options):
    """The ratio that a merge of single tensors records."""
    _, record, _ = merge_to_disk(folder, "model_stock", {"w": base}, [{"w": model} for model in models], **options)
    return record["groups"]["w"]["ratio"]


def exact_ratio(base, models):
    """The oracle's."""
    return model_stock.ratio(exact.gram(base, models)[1:, 1:])


def granted(*dtypes):
    """What the law grants t: narrow where any input is."""
    return 1e-6 if any(dtype in HALVES for dtype in dtypes) else 1e-11


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("count", "size", "shared", "own"),
    [
        (2, 3, 0.5, 0.5),
        (2, 2049, 0.01, 0.01),
        (3, 65_537, 0.1, 0.1),
        (2, 200_003, 1e-3, 3e-3),
        (4, 70_000, 3.0, 1.0),
        (6, 4096, 0.02, 0.2),
        (2, 65_536, 1.0, 30.0),
    ],
)
def test_ratio_is_exact(tmp_path, dtype, count, size, shared, own):
    """Few and many elements, small and large steps, agreeing and nearly unrelated models."""
    base, models = fine_tunes(count, size, seed=size, dtype=dtype, shared=shared, own=own)
    assert recorded_ratio(tmp_path, base, models) == pytest.approx(exact_ratio(base, models), abs=granted(dtype))


@pytest.mark.parametrize(
    ("base_dtype", "model_dtypes"),
    [
        (BF16, (FP32, FP32)),
        (FP32, (BF16, BF16)),
        (FP16, (BF16, BF16)),
        (FP64, (FP32, FP32)),
        (FP32, (FP32, BF16)),
        (BF16, (FP16, FP32)),
        (FP32, (FP64, FP64)),
    ],
    ids=str,
)
def test_ratio_of_mixed_dtypes(tmp_path, base_dtype, model_dtypes):
    """Every input counts at the dtype in which it is stored."""
    base, models = fine_tunes(2, 80_000, seed=5, shared=0.2, own=0.2)
    base, models = base.to(base_dtype), [model.to(dtype) for model, dtype in zip(models, model_dtypes, strict=True)]
    expected = exact_ratio(base, models)
    assert recorded_ratio(tmp_path, base, models) == pytest.approx(expected, abs=granted(base_dtype, *model_dtypes))


@pytest.mark.parametrize("dtype", [BF16, FP32, FP64], ids=str)
@pytest.mark.parametrize("around", [0.0, 1.0], ids=["base 0", "base of the deltas' scale"])
@pytest.mark.parametrize("power", [-83, -40, -20, 20, 40, 60])
def test_ratio_is_free_of_scale(tmp_path, dtype, around, power):
    """Deltas from 1e-25 to 1e+18 (powers of two, so that storage keeps them) give the t of ordinary ones."""
    base, models = fine_tunes(3, 5000, seed=7, dtype=dtype, shared=0.4, own=0.5, around=around)
    expected = exact_ratio(base, models)
    scaled = [torch.ldexp(tensor.double(), torch.tensor(power)).to(dtype) for tensor in (base, *models)]
    assert recorded_ratio(tmp_path, scaled[0], scaled[1:]) == pytest.approx(expected, abs=granted(dtype))


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-18, 1e-12, 1e12, 1e18, 1e30])
@pytest.mark.parametrize("dtype", [BF16, FP32, FP64], ids=str)
@pytest.mark.parametrize("granularity", ["tensor", "model"])
def test_ratio_of_tiny_and_huge_deltas(tmp_path, dtype, scale, granularity):
    """Deltas of 1e-30 and of 1e+30 around a base of zero: t is the oracle's."""
    base, models = fine_tunes(2, 3000, seed=8, shared=0.4, own=0.5, around=0.0)
    base, models = base.to(dtype), [(model * scale).to(dtype) for model in models]
    _, record, _ = merge_to_disk(
        tmp_path, "model_stock", {"w": base}, [{"w": model} for model in models], granularity=granularity
    )
    (group,) = record["groups"].values()
    assert group["ratio"] == pytest.approx(exact_ratio(base, models), abs=granted(dtype))


@pytest.mark.parametrize("dtype", [BF16, FP32, FP64], ids=str)
def test_tiny_deltas_beside_a_large_base(tmp_path, dtype):
    """A tensor of which only small elements moved, by 1e-12, beside elements of one that did not."""
    tail = [(normal(500, seed=9 + i) + normal(500, seed=8)) * 1e-12 for i in range(3)]
    body = normal(500, seed=12, dtype=dtype)
    base, *models = (torch.cat([body, part.to(dtype)]) for part in tail)
    assert recorded_ratio(tmp_path, base, models) == pytest.approx(exact_ratio(base, models), abs=granted(dtype))


@pytest.mark.parametrize("power", [-60, -30, 30, 60])
def test_models_of_very_different_reach(tmp_path, power):
    """One model moved 1e-18 or 1e+18 times as far as the other: their cosine is as exact as ever."""
    base = torch.zeros(4000, dtype=FP32)
    shared = normal(4000, seed=13)
    models = [(shared + normal(4000, seed=14 + i)).float() for i in range(2)]
    expected = exact_ratio(base, models)
    models[1] = torch.ldexp(models[1], torch.tensor(power))
    assert recorded_ratio(tmp_path, base, models) == pytest.approx(expected, abs=1e-11)


def test_sixteen_million_elements_in_float32(tmp_path):
    """Trap 6: sums over 2^24 elements of one size, where float32 accumulation is off by 7e-4, are exact to 1e-11."""
    size = 1 << 24
    generator = torch.Generator().manual_seed(1)
    base = torch.zeros(size)
    models = [torch.empty(size).uniform_(0.5, 1.5, generator=generator) for _ in range(2)]
    ratio = recorded_ratio(tmp_path, base, models)
    parts = [[model[p : p + (1 << 20)].double() for model in models] for p in range(0, size, 1 << 20)]
    dots = [[math.fsum(float(part[i] @ part[j]) for part in parts) for j in range(2)] for i in range(2)]
    # Dot products in float64 over a million elements each, then added: exact to 1e-13.
    assert ratio == pytest.approx(model_stock.ratio(dots), abs=1e-11)


def test_ratio_near_one_and_near_zero(tmp_path):
    """Nearly equal and nearly orthogonal models: no digits are lost at either end."""
    base, shared = normal(20_000, seed=20), normal(20_000, seed=21)
    for number, own in enumerate((1e-6, 1e-3, 1e3)):
        models = [base + shared + own * normal(20_000, seed=22 + i) for i in range(3)]
        expected = exact_ratio(base, models)
        assert recorded_ratio(tmp_path / str(number), base, models) == pytest.approx(expected, abs=1e-11)


def test_nearly_opposed_models_under_allow(tmp_path):
    """Close to the pole, 1 + c = 1e-4, t keeps what the cosine's own rounding leaves of it."""
    base, step = normal(5000, seed=30), normal(5000, seed=31)
    models = [base + step, base - step + 0.014 * normal(5000, seed=32)]
    gram = exact.gram(base, models)[1:, 1:]
    expected = model_stock.ratio(gram, "allow")
    ratio = recorded_ratio(tmp_path, base, models, parameters={"negative": "allow"})
    assert expected < -1e3
    # dt/dc = 2/(1+c)^2 = 1e8 magnifies the 1e-15 of the cosine.
    assert ratio == pytest.approx(expected, rel=1e-9)


def test_recorded_weights_are_what_the_ratio_says(tmp_path):
    """1 - t for the base, t/N for each model."""
    base, models = fine_tunes(3, 1000, seed=33, dtype=FP32)
    _, record, _ = merge_to_disk(tmp_path, "model_stock", {"w": base}, [{"w": model} for model in models])
    group = record["groups"]["w"]
    t = group["ratio"]
    assert group["weights"] == pytest.approx(np.array([1 - t, t / 3, t / 3, t / 3]), abs=1e-16)


@pytest.mark.parametrize("method", ["model_stock", "multislerp"])
def test_inner_products_beyond_float64(method):
    """Refused with the tensor's name, not taken for a number; methods without them are right there too."""
    base, models = fine_tunes(2, 64, seed=9, shared=0.2, own=0.2)
    huge = [{"w": one.double() * 1e300} for one in (base, *models)]
    given = {"weight": 1.0} if method == "multislerp" else {}
    with pytest.raises(errors.MethodError, match="inner products of the weights overflow float64; tensor w"):
        stockpot.merge_state_dicts(method, base=huge[0], models=huge[1:], parameters=given)
    mean = stockpot.merge_state_dicts("linear", models=huge[1:])["w"]
    assert torch.equal(mean, torch.stack([one["w"] / 2 for one in huge[1:]]).sum(0))
