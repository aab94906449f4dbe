"""One state dict that becomes one mixture after another, and the digests that say which are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import stockpot
from stockpot.engine import LiveModel, file_digest, memory_digest, mixture_digest
from stockpot.recipe import Recipe, build_recipe

from . import _checkpoints as make


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """A base and three fine-tunes with every kind of tensor."""
    return [
        str(make.folder(tmp_path / f"m{number}", make.tensors(make.SMALL, number) | make.buffers(number)))
        for number in range(4)
    ]


def live_of(models: list[str], **options: object) -> LiveModel:
    """Everything open."""
    sources = {ref: stockpot.open_checkpoint(ref) for ref in models}
    return LiveModel(sources, memory=32 << 20, workers=2, device="cpu")


def recipes(models: list[str]) -> list[Recipe]:
    """Mixtures of several kinds; the counters and masks of the fine-tunes differ, the first one's are taken."""
    base, a, b, c = models
    first = {"mismatch": "first"}
    return [
        build_recipe("linear", base=None, models=[a], **first),
        build_recipe("linear", base=None, models=[a, b, c], **first),
        build_recipe("linear", base=None, models=[c, a], parameters={"weight": [0.3, 0.7]}, **first),
        build_recipe("model_stock", base=base, models=[a, b, c], **first),
        build_recipe("task_arithmetic", base=base, models=[b], parameters={"weight": [0.5]}, **first),
        build_recipe("linear", base=None, models=[b, c], dtype="bfloat16", **first),
        build_recipe("linear", base=None, models=[a, b, c], **first),
    ]


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """Its bytes."""
    return tensor.reshape(-1).view(torch.uint8)


def test_the_bytes_of_a_merge_in_the_same_memory(models: list[str], tmp_path: Path) -> None:
    """Every mixture equals what ``merge`` writes; tensors of equal form stay where they are."""
    live = live_of(models)
    addresses = []
    for number, recipe in enumerate(recipes(models)):
        found = live.become(live.plan(recipe))
        out = stockpot.merge(recipe, out=tmp_path / f"out{number}").out
        expected = load_file(out / "model.safetensors")
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(raw(found[name]), raw(tensor)), name
        addresses.append(found["embed.weight"].data_ptr())
    assert len(set(addresses[:5])) == 1


def test_what_the_caller_takes_out_comes_back(models: list[str]) -> None:
    """An evaluator may empty the dict, or write into its tensors: the next mixture is whole."""
    live = live_of(models)
    plan = live.plan(recipes(models)[1])
    expected = {name: tensor.clone() for name, tensor in live.become(plan).items()}
    found = live.become(plan)
    for tensor in found.values():
        tensor.zero_()
    found.clear()
    again = live.become(plan)
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())


def digest(live: LiveModel, recipe: Recipe) -> str:
    """By the contents of the files."""
    return mixture_digest(live.plan(recipe), lambda source: "".join(file_digest(file.path) for file in source.files))


def test_other_words_for_the_same_mixture(models: list[str], tmp_path: Path) -> None:
    """Order, doubles by copy, weights of zero, a detour over the base, another path: one digest."""
    base, a, b, c = models
    (tmp_path / "copy").mkdir()
    for file in Path(a).iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    copy = str(tmp_path / "copy")
    live = live_of([*models, copy])

    def linear(names: list[str], *weights: float) -> str:
        parameters = {"weight": list(weights), "normalize": False}
        return digest(live, build_recipe("linear", base=None, models=names, parameters=parameters, only=["weight"]))

    same = {
        linear([a, b], 0.5, 0.5),
        linear([copy, b], 0.5, 0.5),
        linear([a, b, c], 0.5, 0.5, 0.0),
        linear([a, copy, b], 0.25, 0.25, 0.5),
        digest(
            live,
            build_recipe(
                "task_arithmetic", base=base, models=[a, b], parameters={"weight": [0.5, 0.5]}, only=["weight"]
            ),
        ),
    }
    assert len(same) == 1
    others = [
        linear([a, b], 0.4, 0.6),
        linear([a, c], 0.5, 0.5),
        linear([a], 1.0),
        digest(live, build_recipe("linear", base=None, models=[a, b], only=["encoder.*weight"])),
        digest(live, build_recipe("linear", base=None, models=[a, b], only=["weight"], dtype="float32")),
        digest(live, build_recipe("model_stock", base=base, models=[a, b], only=["weight"])),
        digest(live, build_recipe("model_stock", base=base, models=[b, a], only=["weight"])),
        digest(live, build_recipe("model_stock", base=base, models=[a, b], only=["weight"], granularity="model")),
    ]
    assert len({*same, *others}) == 1 + len(others)


def test_renamed_tensors_are_others(tmp_path: Path) -> None:
    """Two tensors of one form that change names make another mixture; other words for the same renaming do not."""
    made = {"a": torch.zeros(3), "b": torch.ones(3)}
    paths = [str(make.folder(tmp_path / name, made)) for name in ("one", "two")]
    live = live_of(paths)

    def renamed(*renames: str) -> str:
        return digest(live, build_recipe("linear", base=None, models=paths, rename=list(renames)))

    plain = renamed("a=a")
    swapped = renamed("2:^a$=x", "2:^b$=a", "2:^x$=b")
    assert plain == renamed("b=b")
    assert swapped == renamed("2:^b$=y", "2:^a$=b", "2:^y$=a")
    assert plain != swapped


def test_digests_of_memory() -> None:
    """Names, forms and bytes count; where they lie does not."""
    from stockpot.engine import MemorySource

    state = {"w": torch.arange(4.0), "v": torch.zeros(2, 2)}
    found = memory_digest(MemorySource(state, "one"))
    assert found == memory_digest(MemorySource({name: tensor.clone() for name, tensor in state.items()}, "two"))
    others = [
        {"w": torch.arange(4.0), "u": torch.zeros(2, 2)},
        {"w": torch.arange(4.0), "v": torch.zeros(4)},
        {"w": torch.arange(4.0), "v": torch.full((2, 2), -0.0)},
        {"w": torch.arange(4.0), "v": torch.zeros(2, 2, dtype=torch.int32)},
    ]
    assert len({found, *(memory_digest(MemorySource(one, "x")) for one in others)}) == 5
