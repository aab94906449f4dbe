"""Model Stock through the public verb: frozen and equal tensors, the refusals, and where implementations go wrong."""

import numpy as np
import pytest
import torch
from tests.oracles import exact, model_stock
from tests.oracles.data import FLOATS, fine_tunes, merge_one, merge_to_disk, normal

import stockpot
from stockpot import errors

AWKWARD = [0.0, -0.0, 1.5, -2.0, 1e-7, -1e-7, 3e4, -3e4]


def awkward(dtype, seed=0, size=500):
    """Random numbers of a dtype with zeros of both signs, subnormals and large ones among them."""
    tiny = torch.finfo(dtype).tiny
    special = torch.tensor([*AWKWARD, tiny, -tiny, tiny / 2, -tiny / 2, tiny / 8], dtype=torch.float64).to(dtype)
    return torch.cat([special, normal(size, seed=seed, dtype=dtype)])


@pytest.mark.parametrize("granularity", ["tensor", "row", "block", "model"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_frozen_tensors_give_the_bases_bytes(dtype, granularity):
    """All w_i = w0: the result is w0, signs of zero and subnormals included."""
    frozen = awkward(dtype)
    base, models = fine_tunes(2, 40, seed=1, dtype=dtype)
    merged = stockpot.merge_state_dicts(
        "model_stock",
        base={"frozen": frozen, "other": base},
        models=[{"frozen": frozen.clone(), "other": model} for model in models],
        granularity=granularity,
    )
    assert exact.same_bits(merged["frozen"], frozen)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_clamped_tensors_give_the_bases_bytes(dtype):
    """t = 0: w0's bytes."""
    base = awkward(dtype, size=64)
    step = torch.zeros_like(base)
    step[-64:] = 0.5
    merged = merge_one("model_stock", base, [base + step, base - step])
    assert exact.same_bits(merged, base)


@pytest.mark.parametrize("n", [2, 3, 7, 49])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_equal_models_give_their_bytes(dtype, n):
    """w1 = .. = wN, not w0: the result is w1, bit for bit, even where w0 is larger than w1 by many powers of two."""
    for seed in range(10):
        model = awkward(dtype, seed=seed)
        base = normal(model.numel(), seed=100 + seed, dtype=dtype, scale=1e3)
        merged = merge_one("model_stock", base, [model.clone() for _ in range(n)])
        assert exact.same_bits(merged, model), f"seed {seed}"


@pytest.mark.parametrize("size", [2049, 65_536, 200_003])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_equal_models_of_any_size_give_their_bytes(dtype, size):
    """So for tensors whose inner products are summed over chunks and blocks."""
    model = normal(size, seed=1, dtype=dtype)
    base = normal(size, seed=2, dtype=dtype, scale=1e3)
    for n in (2, 3, 5):
        assert exact.same_bits(merge_one("model_stock", base, [model.clone() for _ in range(n)]), model), n


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_with_equal_models_give_their_bytes(dtype):
    """At granularity row the rows on which the models agree are theirs, bit for bit, beside rows that differ."""
    model = awkward(dtype).repeat(6, 1)
    base = normal(*model.shape, seed=7, dtype=dtype, scale=1e3)
    other = model.clone()
    other[::2] = normal(3, model.shape[1], seed=8, dtype=dtype)
    merged = merge_one("model_stock", base, [model, other], granularity="row")
    assert exact.same_bits(merged[1::2], model[1::2])


@pytest.mark.parametrize("n", [3, 5])
def test_one_model_that_did_not_move(n):
    """|d_1| = 0 and the others not: its cosines count as 0, and it has its share of the mean."""
    base, models = fine_tunes(n, 300, seed=3, own=0.5)
    models[0] = base.clone()
    expected = model_stock.merge(base, models)
    # Float64 rounding of a few terms of size one.
    assert merge_one("model_stock", base, models).numpy() == pytest.approx(expected, abs=1e-14)


def test_one_of_two_that_did_not_move_gives_the_base():
    """With N = 2 the only cosine counts as 0: the base, clamped; refused under raise."""
    base, models = fine_tunes(2, 300, seed=4)
    models[0] = base.clone()
    assert exact.same_bits(merge_one("model_stock", base, models), base)
    with pytest.raises(errors.MethodError, match="cosine"):
        merge_one("model_stock", base, models, parameters={"negative": "raise"})


def test_one_fine_tune_is_refused_with_a_reason():
    """N = 1 is an error that says why."""
    base, models = fine_tunes(1, 10, seed=5)
    with pytest.raises(errors.InputError, match=r"(?s)angle|cosine") as caught:
        merge_one("model_stock", base, models)
    assert "2" in str(caught.value)
    assert caught.value.exit_code == 2


def test_no_base_is_refused():
    """Without an anchor there is no Model Stock."""
    _, models = fine_tunes(2, 10, seed=5)
    with pytest.raises(errors.InputError, match="base"):
        merge_one("model_stock", None, models)


def test_tensor_without_an_anchor():
    """A tensor that the base lacks is refused; under missing=average it is the models' plain mean."""
    base, models = fine_tunes(2, 10, seed=6)
    maps = [{"w": model, "extra": model * 3} for model in models]
    with pytest.raises(errors.MissingTensorError, match="extra"):
        stockpot.merge_state_dicts("model_stock", base={"w": base}, models=maps)
    merged = stockpot.merge_state_dicts("model_stock", base={"w": base}, models=maps, missing="average")
    # One rounding of a sum of two.
    assert merged["extra"].numpy() == pytest.approx(((maps[0]["extra"] + maps[1]["extra"]) / 2).numpy(), abs=1e-15)
    assert exact.same_bits(merged["w"], merge_one("model_stock", base, models))


@pytest.mark.parametrize("negative", ["raise", "allow"])
def test_refusals_reach_the_caller(negative):
    """Opposed task vectors: raise refuses, and allow refuses the pole."""
    base = normal(20, seed=7).round()
    step = normal(20, seed=8).round() + 0.5
    with pytest.raises(errors.MethodError):
        merge_one("model_stock", base, [base + step, base - step], parameters={"negative": negative})


def test_allow_extrapolates():
    """negative=allow at c = -.5 gives t = -2: three times the base less the models."""
    base = torch.zeros(2, dtype=torch.float64)
    models = [torch.tensor([1.0, 0.0], dtype=base.dtype), torch.tensor([-0.5, 0.75**0.5], dtype=base.dtype)]
    merged = merge_one("model_stock", base, models, parameters={"negative": "allow"})
    # The pole is at c = -1; division by 1/2 doubles rounding.
    assert merged.numpy() == pytest.approx((-2 * (models[0] + models[1]) / 2).numpy(), abs=1e-14)


def test_clamped_tensors_are_recorded(tmp_path):
    """A clamped group is marked in the record and counted in the result."""
    base, models = fine_tunes(2, 30, seed=9, own=0.5)
    step = normal(30, seed=8)
    _, record, result = merge_to_disk(
        tmp_path,
        "model_stock",
        {"a": base, "b": base, "c": base},
        [{"a": models[0], "b": base + step, "c": base}, {"a": models[1], "b": base - step, "c": base}],
    )
    assert record["groups"]["b"]["clamped"] == 1
    assert record["groups"]["b"]["ratio"] == 0.0
    assert record["groups"]["b"]["weights"] == [1.0, 0.0, 0.0]
    assert "clamped" not in record["groups"]["a"]
    assert "ratio" not in record["groups"]["c"]
    assert (result.ratio.clamped, result.ratio.count) == (1, 2)


def test_small_norms_do_not_fall_back_to_the_base(tmp_path):
    """Trap 4: a bias whose |d1||d2| is 1e-8 keeps its t of .89."""
    c = 0.89 / (2 - 0.89)
    base = normal(8, seed=10, scale=1e-3)
    one = torch.zeros(8, dtype=torch.float64)
    other = torch.zeros(8, dtype=torch.float64)
    one[0] = 1e-4
    other[0], other[1] = c * 1e-4, (1 - c * c) ** 0.5 * 1e-4
    _, record, _ = merge_to_disk(tmp_path, "model_stock", {"b": base}, [{"b": base + one}, {"b": base + other}])
    # base + d rounds at 1e-19, that is 1e-15 of d.
    assert record["groups"]["b"]["ratio"] == pytest.approx(0.89, abs=1e-13)


def test_bfloat16_is_not_computed_in_bfloat16(tmp_path):
    """Trap 5: t of bf16 tensors is exact to 1e-6, and nearly every element of the output is correctly rounded."""
    base, models = fine_tunes(2, 200_000, seed=11, dtype=torch.bfloat16, shared=0.05, own=0.05)
    tensors, record, _ = merge_to_disk(tmp_path, "model_stock", {"w": base}, [{"w": m} for m in models])
    group = record["groups"]["w"]
    assert group["ratio"] == pytest.approx(model_stock.ratio(exact.gram(base, models)[1:, 1:]), abs=1e-6)
    correct = exact.rounded(exact.combination(group["weights"], [base, *models]), torch.bfloat16)
    # The law of numbers: at most 1 in 10,000.
    assert (exact.numbers(tensors["w"]) != correct).mean() <= 1e-4


def test_rows_of_a_conv_kernel_are_output_channels():
    """Trap 8: with granularity row, each output channel (dim 0) of a conv kernel has its own ratio."""
    base, models = fine_tunes(2, 5, 4, 3, 3, seed=12, own=0.8)
    expected = [model_stock.merge(base[k], [m[k] for m in models]) for k in range(5)]
    merged = merge_one("model_stock", base, models, granularity="row")
    # Float64 rounding of a few terms of size one.
    assert merged.reshape(5, -1).numpy() == pytest.approx(np.stack(expected), abs=1e-14)
    assert not torch.allclose(merged, merge_one("model_stock", base, models))


def test_integer_buffers_are_not_divided():
    """Trap 9: equal integer tensors are copied; different ones refused by name."""
    base, models = fine_tunes(2, 10, seed=13)
    index = torch.arange(6)
    maps = [{"w": model, "index": index.clone()} for model in models]
    merged = stockpot.merge_state_dicts("model_stock", base={"w": base, "index": index * 0}, models=maps)
    assert torch.equal(merged["index"], index)
    maps[1]["index"][3] = 99
    with pytest.raises(errors.MismatchError, match="index"):
        stockpot.merge_state_dicts("model_stock", base={"w": base, "index": index}, models=maps)


def test_counters_are_the_first_models():
    """Trap 9: a 0-d integer counter is the first model's, undivided."""
    base, models = fine_tunes(2, 10, seed=14)
    maps = [{"w": m, "num_batches_tracked": torch.tensor(n)} for m, n in zip(models, (7, 9), strict=True)]
    start = {"w": base, "num_batches_tracked": torch.tensor(1)}
    merged = stockpot.merge_state_dicts("model_stock", base=start, models=maps)
    assert int(merged["num_batches_tracked"]) == 7
    assert merged["num_batches_tracked"].dtype == torch.int64


def test_tied_tensors_are_merged_once():
    """Trap 9: names that share storage come out sharing storage, with the ratio of the one tensor."""
    base, models = fine_tunes(2, 6, 5, seed=15, own=0.5)
    tied = [{"embed.weight": tensor, "head.weight": tensor} for tensor in (base, *models)]
    merged = stockpot.merge_state_dicts("model_stock", base=tied[0], models=tied[1:])
    assert merged["embed.weight"].data_ptr() == merged["head.weight"].data_ptr()
    assert exact.same_bits(merged["head.weight"], merge_one("model_stock", base, models))


@pytest.mark.parametrize("where", ["base", "model"])
def test_mismatched_shapes_are_refused(where):
    """Trap 9: nothing is cropped; the refusal names the tensor and both shapes."""
    base, models = fine_tunes(2, 6, 5, seed=16)
    if where == "base":
        base = base[:4]
    else:
        models[1] = models[1][:4]
    with pytest.raises(errors.MismatchError, match="weight") as caught:
        merge_one("model_stock", base, models)
    text = "\n".join(caught.value.lines())
    assert "6" in text
    assert "4" in text


def test_missing_tensors_are_not_averaged_over_fewer_models():
    """Trap 9: a tensor that one model lacks is refused by name."""
    base, models = fine_tunes(3, 10, seed=17)
    maps = [{"w": model, "b": model.clone()} for model in models]  # no ties: a tied name may be left out
    del maps[2]["b"]
    with pytest.raises(errors.MissingTensorError, match="b"):
        stockpot.merge_state_dicts("model_stock", base={"w": base, "b": base.clone()}, models=maps)
