"""Same inputs, same bits: whatever the workers, the memory budget, the company of other tensors, files or memory."""

import pytest
import torch
from tests.oracles import exact
from tests.oracles.data import merge_to_disk, normal

import stockpot

from ._law import METHODS

SHAPES = {
    "wide": (500, 1501),
    "long": (3, 270_001),
    "tall": (120_001, 3),
    "small": (40, 7),
    "one": (1,),
    "none": (0, 4),
}
SETTINGS = [(workers, memory) for workers in (1, 2, 8) for memory in ("64MiB", "4GiB")]


@pytest.fixture(scope="module")
def checkpoints():
    """A base and three models; the tensors' dtypes take turns."""
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    found = [{} for _ in range(4)]
    for number, (name, shape) in enumerate(SHAPES.items()):
        shared = normal(*shape, seed=10 * number, scale=0.1)
        for i, tensors in enumerate(found):
            step = shared + normal(*shape, seed=10 * number + i + 1, scale=0.1) if i else 0.0
            tensors[name] = (normal(*shape, seed=10 * number + 5) + step).to(dtypes[number % 4])
    return found[0], found[1:]


def merge(method, base, models, parameters, **options):
    """Merge with as many of the inputs as the method takes."""
    count, takes_base, _ = METHODS[method]
    return stockpot.merge_state_dicts(
        method, base=base if takes_base else None, models=models[:count], parameters=parameters, **options
    )


OWN = [(method, parameters, None) for method, (_, _, parameters) in METHODS.items()]
OWN += [("model_stock", {}, "row"), ("model_stock", {}, "block"), ("model_stock", {"norms": "free"}, "tensor")]
"""Cases in which a tensor's result is its own affair."""
CASES = [*OWN, ("model_stock", {}, "model")]


def case_id(value):
    """Method and granularity."""
    return value if isinstance(value, str) else None


@pytest.mark.parametrize(("method", "parameters", "granularity"), CASES, ids=case_id)
def test_workers_and_memory_change_no_bit(checkpoints, method, parameters, granularity):
    """1, 2 or 8 workers, 64 MiB or 4 GiB."""
    base, models = checkpoints
    expected = None
    for workers, memory in SETTINGS:
        merged = merge(method, base, models, parameters, granularity=granularity, workers=workers, memory=memory)
        expected = expected or merged
        for name in SHAPES:
            assert exact.same_bits(merged[name], expected[name]), (name, workers, memory)


@pytest.mark.parametrize("granularity", ["tensor", "block", "model"])
def test_pieces_of_a_tensor_change_no_bit(tmp_path, granularity):
    """float64, taken whole or in pieces of a few blocks: inner products, coefficients and result to the last bit."""
    shared = normal(700_001, seed=70)
    tensors = [normal(700_001, seed=71 + i) + (shared if i else 0.0) for i in range(4)]
    inputs = [{"layer.0.w": one, "layer.0.b": one[:9]} for one in tensors]
    found = []
    for number, (workers, memory) in enumerate([(1, "4GiB"), (1, "16MiB"), (1, "20MiB"), (2, "32MiB"), (8, "64MiB")]):
        folder = tmp_path / str(number)
        _, record, _ = merge_to_disk(
            folder, "model_stock", inputs[0], inputs[1:], granularity=granularity, workers=workers, memory=memory
        )
        grams = (folder / "out" / "stockpot_geometry.safetensors").read_bytes()
        found.append((grams, record["groups"], record["tensors"]))
        assert found[-1] == found[0], (workers, memory)


@pytest.mark.parametrize(("method", "parameters", "granularity"), OWN, ids=case_id)
def test_company_changes_no_bit(checkpoints, method, parameters, granularity):
    """A tensor merged alone, and among others of other dtypes and sizes, is the same."""
    base, models = checkpoints
    together = merge(method, base, models, parameters, granularity=granularity)
    for name in ("small", "long", "one"):
        alone = merge(
            method,
            {name: base[name]},
            [{name: model[name]} for model in models],
            parameters,
            granularity=granularity,
        )
        assert exact.same_bits(alone[name], together[name]), name


def test_order_of_names_changes_no_bit(checkpoints):
    """The order in which a checkpoint lists its tensors does not matter."""
    base, models = checkpoints
    backwards = [dict(reversed(one.items())) for one in (base, *models)]
    for granularity in ("tensor", "block"):
        expected = merge("model_stock", base, models, {}, granularity=granularity)
        merged = merge("model_stock", backwards[0], backwards[1:], {}, granularity=granularity)
        assert all(exact.same_bits(merged[name], expected[name]) for name in SHAPES)


@pytest.mark.parametrize("method", METHODS)
def test_files_and_memory_give_the_same_bits(tmp_path, checkpoints, method):
    """merge on disk and merge_state_dicts agree."""
    base, models = checkpoints
    count, takes_base, parameters = METHODS[method]
    tensors, _, _ = merge_to_disk(tmp_path, method, base if takes_base else None, models[:count], parameters=parameters)
    expected = merge(method, base, models, parameters)
    assert all(exact.same_bits(tensors[name], expected[name]) for name in SHAPES)


def test_strides_change_no_bit(checkpoints):
    """Transposed and sliced views are merged as the numbers they show."""
    base, models = checkpoints
    plain = [one["wide"].T.contiguous() for one in (base, *models)]
    views = [one["wide"].T for one in (base, *models)]
    sliced = [torch.stack([tensor, tensor], dim=1)[:, 1] for tensor in plain]
    expected = stockpot.merge_state_dicts(
        "model_stock", base={"w": plain[0]}, models=[{"w": one} for one in plain[1:]]
    )["w"]
    for inputs in (views, sliced):
        merged = stockpot.merge_state_dicts(
            "model_stock", base={"w": inputs[0]}, models=[{"w": one} for one in inputs[1:]]
        )["w"]
        assert exact.same_bits(merged, expected)


def test_same_call_gives_the_same_bits(checkpoints):
    """Twice the same."""
    base, models = checkpoints
    first, second = (merge("model_stock", base, models, {}, workers=8) for _ in range(2))
    assert all(exact.same_bits(first[name], second[name]) for name in SHAPES)
