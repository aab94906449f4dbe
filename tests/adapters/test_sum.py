"""Several adapters become one: the sum of their products to float32's precision, or its best approximation, told."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.models import _oracle
from tests.models._zoo import KINDS, build

import stockpot
from stockpot import errors

from ._loras import LORAS, base_model, merged_by_peft, save, save_adapter

NAMES = [name for name in LORAS if name not in ("modules", "pickled")]


def deltas(name: str, seed: int) -> dict[str, np.ndarray]:
    """What an adapter adds to each weight, by PEFT in float64."""
    base = {key: tensor.double() for key, tensor in base_model(name).state_dict().items()}
    return {key: (t - base[key]).numpy() for key, t in merged_by_peft(name, seed).items() if t.is_floating_point()}


def put_on(name: str, folder: Path) -> dict[str, np.ndarray]:
    """What a written adapter adds to each weight when PEFT loads it on the base and merges it in float64."""
    base = base_model(name).double()
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        model = peft.PeftModel.from_pretrained(base, str(folder)).double()
        missing = [key for key, _ in model.named_parameters() if key.endswith("lora_A.default.weight")]
        assert missing or any("embedding" in key for key, _ in model.named_parameters())
        after = model.merge_and_unload().state_dict()
    return {key: (after[key] - t).numpy() for key, t in before.items() if t.is_floating_point()}


@pytest.mark.parametrize("name", NAMES)
def test_the_sum_of_products(name: str, tmp_path: Path) -> None:
    """``linear`` of adapters, loaded by PEFT, adds the weighted mean of what each adds: no cross terms."""
    _, adapters = save(name, tmp_path)
    out = tmp_path / "out"
    result = stockpot.merge("linear", models=adapters, out=out, parameters={"weight": [1.0, 3.0]}, dtype="float32")
    assert result.lost is None
    found, one, two = put_on(name, out), deltas(name, 1), deltas(name, 2)
    moved = 0
    for key, step in found.items():
        want = 0.25 * one[key] + 0.75 * two[key]
        size = np.abs(want).max()
        moved += bool(size)
        assert np.abs(step - want).max() <= size * 2e-6 + 1e-12, key
    assert moved
    assert stockpot.verify(out, recompute=1.0).problems == ()
    assert "library_name: peft" in (out / "README.md").read_text()


@pytest.mark.parametrize("name", ["plain", "all-linear", "patterns", "conv1d", "conv2d"])
def test_model_stock_without_a_weight_of_the_base(name: str, tmp_path: Path) -> None:
    """Ratios from the factors alone are those of the whole task vectors, and the step is t times their mean."""
    base, adapters = save(name, tmp_path)
    out = tmp_path / "out"
    result = stockpot.merge("model_stock", base=base, models=adapters, out=out, dtype="float32")
    record = json.loads((out / "stockpot.json").read_text())
    found, one, two = put_on(name, out), deltas(name, 1), deltas(name, 2)
    seen = 0
    for key, step in found.items():
        if not np.abs(one[key]).max():
            continue
        zero = torch.zeros(one[key].shape, dtype=torch.float64)
        ratio = _oracle.ratio(zero, [torch.from_numpy(one[key]), torch.from_numpy(two[key])])
        assert abs(record["groups"][key]["ratio"] - ratio) < 1e-9, key
        want = ratio * (one[key] + two[key]) / 2
        assert np.abs(step - want).max() <= np.abs(one[key]).max() * 2e-6, key
        seen += ratio > 0
    assert result.ratio is not None
    assert result.ratio.count == len(record["groups"])
    assert seen


@pytest.mark.parametrize("granularity", ["block", "model"])
def test_one_ratio_for_many(granularity: str, tmp_path: Path) -> None:
    """Inner products of modules are added over their group."""
    base, adapters = save("plain", tmp_path)
    stockpot.merge("model_stock", base=base, models=adapters, out=tmp_path / "out", granularity=granularity)
    stockpot.merge(
        "model_stock", base=base, models=[f"{base}+{one}" for one in adapters], out=tmp_path / "models",
        granularity=granularity, only=["q_proj", "v_proj"],
    )  # fmt: skip
    found, expected = (
        json.loads((tmp_path / name / "stockpot.json").read_text())["groups"] for name in ("out", "models")
    )
    assert found.keys() == expected.keys()
    for group, record in found.items():
        assert abs(record["ratio"] - expected[group]["ratio"]) < 1e-9


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_a_smaller_rank_is_the_best_one_and_says_what_it_lost(rank: int, tmp_path: Path) -> None:
    """``--set rank=R``: the truncated SVD of each sum; the error told is the error there is."""
    _, adapters = save("plain", tmp_path)
    out = tmp_path / "out"
    result = stockpot.merge("linear", models=adapters, out=out, parameters={"rank": rank})
    found, one, two = put_on("plain", out), deltas("plain", 1), deltas("plain", 2)
    lost = total = 0.0
    worst = {}
    for key, step in found.items():
        want = (one[key] + two[key]) / 2
        if not np.abs(want).max():
            continue
        u, sizes, v = np.linalg.svd(want)
        best = u[:, :rank] * sizes[:rank] @ v[:rank]
        assert np.linalg.norm(step - best) <= 1e-5 * np.linalg.norm(want), key
        lost += np.square(want - best).sum()
        total += np.square(want).sum()
        worst[key.removesuffix(".weight")] = np.linalg.norm(want - best) / np.linalg.norm(want)
    assert result.lost is not None
    assert result.lost.rank == rank
    assert abs(result.lost.relative_error - np.sqrt(lost / total)) < 1e-6
    assert abs(result.lost.largest - max(worst.values())) < 1e-6
    assert result.lost.module == max(worst, key=lambda key: worst[key])
    assert json.loads((out / "stockpot.json").read_text())["lost"] == result.lost.data()
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (rank, rank, False)
    assert all(t.shape[0] == rank for n, t in load_file(out / "adapter_model.safetensors").items() if "lora_A" in n)
    assert stockpot.verify(out, recompute=1.0).problems == ()


def test_a_rank_that_loses_nothing(tmp_path: Path) -> None:
    """A rank of the sum's own or more changes nothing, and nothing is told."""
    _, adapters = save("plain", tmp_path)
    plain = stockpot.merge("linear", models=adapters, out=tmp_path / "plain")
    same = stockpot.merge("linear", models=adapters, out=tmp_path / "same", parameters={"rank": 64})
    assert plain.lost is None
    assert same.lost is None
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "same"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_one_adapter_is_itself(tmp_path: Path) -> None:
    """The merge of one adapter adds what it adds, its scale put into B."""
    _, (adapter, _) = save("rslora", tmp_path)
    stockpot.merge("linear", models=[adapter], out=tmp_path / "out")
    found, one = put_on("rslora", tmp_path / "out"), deltas("rslora", 1)
    for key, step in found.items():
        assert np.abs(step - one[key]).max() <= 1e-6 * max(np.abs(one[key]).max(), 1e-6)


def test_whole_modules_are_averaged(tmp_path: Path) -> None:
    """``modules_to_save`` of all adapters are averaged by ``linear``; a method with an anchor refuses them by name."""
    base, adapters = save("modules", tmp_path)
    stockpot.merge("linear", models=adapters, out=tmp_path / "out")
    one, two, out = (load_file(folder / "adapter_model.safetensors") for folder in (*adapters, tmp_path / "out"))
    name = "base_model.model.model.norm.weight"
    expected = ((one[name].double() + two[name].double()) / 2).float()
    assert torch.equal(out[name], expected)
    with pytest.raises(errors.AdapterError, match="needs the base of a tensor that an adapter has whole"):
        stockpot.merge("model_stock", base=base, models=adapters, out=tmp_path / "stock")


def test_adapters_of_different_modules(tmp_path: Path) -> None:
    """A module that one adapter leaves alone gets the other's share: its task vector there is zero, not missing."""
    kind = KINDS["llama"]
    folders = []
    for number, modules in enumerate((["q_proj", "v_proj"], ["v_proj", "up_proj"])):
        folder = tmp_path / f"a{number}"
        model = build(kind.cls, kind.config(), seed=0)
        save_adapter(model, folder, number, r=2 + number, target_modules=modules, init_lora_weights=False)
        folders.append(folder)
    stockpot.merge("linear", models=folders, out=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 5
    assert set(config["rank_pattern"].values()) == {2, 3}
    base = build(kind.cls, kind.config(), seed=0).double()
    before = {key: t.clone() for key, t in base.state_dict().items()}

    def step(folder: Path) -> dict[str, Any]:
        model = build(kind.cls, kind.config(), seed=0).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            after = peft.PeftModel.from_pretrained(model, str(folder)).double().merge_and_unload().state_dict()
        return {key: after[key] - tensor for key, tensor in before.items()}

    first, second, merged = step(folders[0]), step(folders[1]), step(tmp_path / "out")
    for key in before:
        torch.testing.assert_close(merged[key], (first[key] + second[key]) / 2, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"method": "slerp", "parameters": {"t": 0.5}}, errors.MethodError, "needs the weights themselves"),
        ({"method": "nearswap", "parameters": {"t": 1.0}}, errors.MethodError, "works element by element"),
        ({"only": ["q_proj"]}, errors.UsageError, "all of them, under their own names"),
        ({"out": "out.safetensors"}, errors.OutputError, "needs its configuration"),
        ({"parameters": {"rank": 0}}, errors.ParameterError, "rank is a whole number"),
        ({"parameters": {"rank": 2.5}}, errors.ParameterError, "rank is a whole number"),
    ],
)  # fmt: skip
def test_what_cannot_be_done(options: dict[str, Any], kind: type[Exception], says: str, tmp_path: Path) -> None:
    """Each is told before anything is written."""
    _, adapters = save("plain", tmp_path)
    given = {"method": "linear", "out": "out", **options}
    with pytest.raises(kind, match=says):
        stockpot.merge(given.pop("method"), models=adapters, out=tmp_path / given.pop("out"), **given)
    assert not list(tmp_path.glob("out*"))


def test_an_adapter_among_models(tmp_path: Path) -> None:
    """An adapter beside models, and a rank without adapters, are refused with what to write."""
    base, adapters = save("plain", tmp_path)
    with pytest.raises(errors.AdapterError, match=r"an adapter is no model.*BASE\+ADAPTER"):
        stockpot.merge("linear", models=[base, adapters[0]], out=tmp_path / "out")
    with pytest.raises(errors.AdapterError, match=r"an adapter is no model.*BASE\+ADAPTER"):
        stockpot.geometry(base=base, models=adapters)
    with pytest.raises(errors.UsageError, match="rank is for merging LoRA adapters"):
        stockpot.merge("linear", models=[base, base], out=tmp_path / "out", parameters={"rank": 3})


def test_adapters_of_other_shapes(tmp_path: Path) -> None:
    """Adapters of bases of two sizes do not add up: told by the weight."""
    folders = []
    for number, size in enumerate((32, 48)):
        kind = KINDS["llama"]
        model = build(kind.cls, kind.config(intermediate_size=size), seed=0)
        save_adapter(model, tmp_path / f"a{number}", target_modules=["up_proj"])
        folders.append(tmp_path / f"a{number}")
    with pytest.raises(errors.AdapterError, match=r"different shapes.*up_proj"):
        stockpot.merge("linear", models=folders, out=tmp_path / "out")


def test_the_same_bits_whatever_the_workers(tmp_path: Path) -> None:
    """Threads and memory change nothing, with a smaller rank too."""
    _, adapters = save("all-linear", tmp_path)
    outs = []
    for number, (workers, memory) in enumerate(((1, "8MiB"), (2, "192MiB"))):
        outs.append(tmp_path / f"out{number}")
        stockpot.merge("linear", models=adapters, out=outs[-1], workers=workers, memory=memory, parameters={"rank": 6})
    one, two = ((out / "adapter_model.safetensors").read_bytes() for out in outs)
    assert one == two


def test_merged_adapters_on_their_base(tmp_path: Path) -> None:
    """What was merged is an adapter like any other: ``BASE+OUT`` is the mean of ``BASE+A`` and ``BASE+B``."""
    base, adapters = save("patterns", tmp_path)
    stockpot.merge("linear", models=adapters, out=tmp_path / "out", dtype="float32")
    stockpot.merge("linear", models=[f"{base}+{tmp_path / 'out'}"], out=tmp_path / "one", dtype="float32")
    stockpot.merge("linear", models=[f"{base}+{one}" for one in adapters], out=tmp_path / "two", dtype="float32")
    one, two = _oracle.read(tmp_path / "one"), _oracle.read(tmp_path / "two")
    assert all((one[name] - two[name]).abs().max() <= 1e-6 for name in one)
