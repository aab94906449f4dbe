"""One ratio for a tensor, a row, a block, the model: against the oracle with groups formed by hand."""

import numpy as np
import pytest
import torch
from tests.oracles import exact, model_stock
from tests.oracles.data import fine_tunes, merge_to_disk

import stockpot

SHAPES = {
    "embed.weight": (7, 5),
    "encoder.layer.0.attention.weight": (6, 6),
    "encoder.layer.0.attention.bias": (6,),
    "encoder.layer.1.attention.weight": (6, 6),
    "encoder.layer.1.attention.bias": (6,),
    "encoder.layer.10.attention.weight": (6, 6),
    "conv.weight": (4, 3, 2, 2),
    "head.weight": (5, 6),
    "scale": (),
    "nothing": (3, 0),
}
BLOCKS = {
    "embed.weight": ["embed.weight"],
    "encoder.layer.0": ["encoder.layer.0.attention.weight", "encoder.layer.0.attention.bias"],
    "encoder.layer.1": ["encoder.layer.1.attention.weight", "encoder.layer.1.attention.bias"],
    "encoder.layer.10": ["encoder.layer.10.attention.weight"],
    "conv.weight": ["conv.weight"],
    "head.weight": ["head.weight"],
    "scale": ["scale"],
}
# float64 tensors of size one, three models: a few roundings, and those of the ratio.
ROUNDING = 1e-13


@pytest.fixture(scope="module")
def checkpoints():
    """A base and three models whose tensors differ in how much they agree."""
    found = [{}, {}, {}, {}]
    for number, (name, shape) in enumerate(SHAPES.items()):
        base, models = fine_tunes(3, *shape, seed=50 * number, shared=0.5, own=0.1 + 0.1 * number)
        for tensors, tensor in zip(found, (base, *models), strict=True):
            tensors[name] = tensor
    return found[0], found[1:]


def group_ratio(base, models, names):
    """The oracle's ratio over the tensors of these names."""
    grams = [exact.gram(base[name], [model[name] for model in models]) for name in names]
    return model_stock.ratio(np.sum(grams, axis=0)[1:, 1:])


def mixed(base, models, t):
    """t m + (1 - t) w0."""
    return (1 - t) * base.numpy() + t * sum(model.numpy() for model in models) / len(models)


@pytest.mark.parametrize(
    ("granularity", "groups"),
    [
        ("tensor", {name: [name] for name in SHAPES if name != "nothing"}),
        ("block", BLOCKS),
        ("model", {"model": [name for name in SHAPES if name != "nothing"]}),
    ],
)
def test_groups_share_one_ratio(tmp_path, checkpoints, granularity, groups):
    """Inner products are summed over a group's tensors; its ratio is theirs alone; weights are recorded by group."""
    base, models = checkpoints
    tensors, record, _ = merge_to_disk(tmp_path, "model_stock", base, models, granularity=granularity)
    for group, names in groups.items():
        t = group_ratio(base, models, names)
        assert record["groups"][group]["ratio"] == pytest.approx(t, abs=1e-13)
        for name in names:
            expected = mixed(base[name], [model[name] for model in models], t)
            assert tensors[name].numpy() == pytest.approx(expected, abs=ROUNDING), name
    assert tensors["nothing"].shape == (3, 0)
    assert {name for name, one in record["groups"].items() if "ratio" in one} == set(groups)


def test_rows_have_a_ratio_each(checkpoints):
    """granularity=row: dim 0, output channels of conv kernels too; 0-d and 1-D tensors are one row."""
    base, models = checkpoints
    merged = stockpot.merge_state_dicts("model_stock", base=base, models=models, granularity="row")
    for name, shape in SHAPES.items():
        if name == "nothing":
            assert merged[name].shape == shape
            continue
        rows = [...] if len(shape) < 2 else range(shape[0])
        for row in rows:
            parts = [model[name][row] for model in models]
            t = model_stock.ratio(exact.gram(base[name][row], parts)[1:, 1:])
            assert merged[name][row].numpy() == pytest.approx(mixed(base[name][row], parts, t), abs=ROUNDING), name


def test_ratios_of_rows_are_recorded_as_quantiles(tmp_path, checkpoints):
    """Least, quartiles, greatest over the rows of each tensor."""
    base, models = checkpoints
    _, record, _ = merge_to_disk(tmp_path, "model_stock", base, models, granularity="row")
    group = record["groups"]["conv.weight"]
    ratios = [
        model_stock.ratio(exact.gram(base["conv.weight"][k], [model["conv.weight"][k] for model in models])[1:, 1:])
        for k in range(4)
    ]
    assert group["rows"] == 4
    assert group["ratio_quantiles"] == pytest.approx(np.quantile(ratios, [0, 0.25, 0.5, 0.75, 1]), abs=1e-13)


@pytest.mark.parametrize("shape", [(3, 70_001), (2, 65_536), (5, 2049), (70_000, 3), (65_537, 1), (1, 9)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rows_of_any_length(shape, dtype):
    """Rows longer than a reduction block, as long, and by the thousand, follow the oracle."""
    base, models = fine_tunes(2, *shape, seed=7, dtype=dtype, own=0.6)
    merged = stockpot.merge_state_dicts(
        "model_stock", base={"w": base}, models=[{"w": model} for model in models], granularity="row"
    )["w"]
    rows = range(shape[0]) if shape[0] <= 5 else range(0, shape[0], shape[0] // 40)
    for row in rows:
        t = model_stock.ratio(exact.gram(base[row], [model[row] for model in models])[1:, 1:])
        expected = mixed(base[row].double(), [model[row].double() for model in models], t)
        # Half a step of the dtype, and t off by 1e-6 or 1e-11 times a step of size ten.
        half_step, off = (2.0**-8, 1e-5) if dtype == torch.bfloat16 else (2.0**-24, 1e-10)
        assert (np.abs(merged[row].double().numpy() - expected) <= half_step * np.abs(expected) + off).all()


def test_dtypes_may_differ_within_a_group(tmp_path):
    """A block of a bfloat16 and a float32 tensor has one ratio, of both."""
    wide, narrow = fine_tunes(2, 50, seed=1, own=0.4), fine_tunes(2, 70, seed=2, own=0.9)
    base, *models = (
        {"layer.0.norm": a.float(), "layer.0.weight": b.bfloat16()}
        for a, b in zip((wide[0], *wide[1]), (narrow[0], *narrow[1]), strict=True)
    )
    _, record, _ = merge_to_disk(tmp_path, "model_stock", base, models, granularity="block")
    # The bfloat16 half of the sums is exact to 1e-6.
    assert record["groups"]["layer.0"]["ratio"] == pytest.approx(group_ratio(base, models, list(base)), abs=1e-6)


def test_a_regex_of_ones_own_forms_blocks(tmp_path, checkpoints):
    """block_regex: the matched part of the name is the group."""
    base, models = checkpoints
    _, record, _ = merge_to_disk(
        tmp_path, "model_stock", base, models, granularity="block", parameters={"block_regex": r"^encoder|^conv"}
    )
    names = [name for name in SHAPES if name.startswith("encoder")]
    assert record["groups"]["encoder"]["ratio"] == pytest.approx(group_ratio(base, models, names), abs=1e-13)
    assert record["groups"]["conv"]["ratio"] == pytest.approx(group_ratio(base, models, ["conv.weight"]), abs=1e-13)
    assert "head.weight" in record["groups"]


def test_frozen_tensors_in_a_moving_block_stay(checkpoints):
    """A frozen tensor of a block whose other tensors moved gives w0's bytes: its mean is w0."""
    base, models = checkpoints
    name = "encoder.layer.0.attention.bias"
    models = [{**model, name: base[name].clone()} for model in models]
    merged = stockpot.merge_state_dicts("model_stock", base=base, models=models, granularity="block")
    assert exact.same_bits(merged[name], base[name])
