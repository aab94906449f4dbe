"""Adapters that would be merged wrongly by a hair: each is merged right, or refused by name."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.models import _oracle
from tests.models._zoo import KINDS, build

import stockpot
from stockpot import errors

from ._loras import change, edit, save, save_adapter, values


@pytest.mark.parametrize("targets", [["c_attn", "c_proj", "score"], ["c_proj"], "all-linear"])
def test_square_weights_stored_turned(targets: Any, tmp_path: Path) -> None:
    """GPT-2 beside a linear head: PEFT's one flag is the last module's, and square weights are turned all the same."""
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    cls = transformers.GPT2ForSequenceClassification
    build(cls, config, seed=0).save_pretrained(tmp_path / "base")
    save_adapter(build(cls, config, seed=0), tmp_path / "a", target_modules=targets, init_lora_weights=False)
    model = build(cls, config, seed=0).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = peft.PeftModel.from_pretrained(model, str(tmp_path / "a")).double().merge_and_unload().state_dict()
    for flag in (True, False):
        change(tmp_path / "a", fan_in_fan_out=flag)
        source = stockpot.open_checkpoint(f"{tmp_path / 'base'}+{tmp_path / 'a'}")
        changed = [name for name, info in source.tensors.items() if info.dtype == "F64"]
        assert "transformer.h.0.attn.c_proj.weight" in changed
        for name in changed:
            torch.testing.assert_close(values(source, name), expected[name], rtol=0, atol=1e-12, msg=name)


def test_a_flag_that_lies_about_a_linear(tmp_path: Path) -> None:
    """``fan_in_fan_out`` on a Llama, whose square weights are stored straight, changes nothing."""
    base, (adapter, _) = save("plain", tmp_path)
    name = "model.layers.0.self_attn.q_proj.weight"
    straight = values(stockpot.open_checkpoint(f"{base}+{adapter}"), name)
    change(adapter, fan_in_fan_out=True)
    assert torch.equal(values(stockpot.open_checkpoint(f"{base}+{adapter}"), name), straight)
    (base / "config.json").unlink()  # where nothing else is known, the flag is all there is
    edit(adapter, **{f"model__layers__{n}__self_attn__v_proj__lora_{ab}__weight": None for n in (0, 1) for ab in "AB"})
    assert not torch.equal(values(stockpot.open_checkpoint(f"{base}+{adapter}"), name), straight)


def test_a_factor_with_a_third_axis(tmp_path: Path) -> None:
    """B of shape (out, rank, k) has k times the columns that A has rows: refused, not read past its end."""
    base, (adapter, _) = save("plain", tmp_path)
    edit(adapter, model__layers__0__self_attn__q_proj__lora_B__weight=torch.zeros(32, 4, 3))
    with pytest.raises(errors.AdapterError, match="do not fit each other"):
        stockpot.open_checkpoint(f"{base}+{adapter}")


@pytest.mark.parametrize("granularity", ["tensor", "block", "model"])
def test_model_stock_of_biases_beside_factors(granularity: str, tmp_path: Path) -> None:
    """``lora_bias``: what is added to biases has its part in the inner products, and its ratio, as BASE+ADAPTER has."""
    base, adapters = save("lora-bias", tmp_path)
    only = [r"query|dense"]
    stockpot.merge("model_stock", base=base, models=adapters, out=tmp_path / "out", granularity=granularity)
    stockpot.merge(
        "model_stock", base=base, models=[f"{base}+{one}" for one in adapters], out=tmp_path / "whole",
        granularity=granularity, only=only,
    )  # fmt: skip
    found, expected = (
        json.loads((tmp_path / name / "stockpot.json").read_text())["groups"] for name in ("out", "whole")
    )
    told = {name: group for name, group in expected.items() if "ratio" in group}
    assert found.keys() == told.keys()
    for name, group in found.items():
        assert abs(group["ratio"] - told[name]["ratio"]) < 1e-9, name
    biases = [t for name, t in load_file(tmp_path / "out" / "adapter_model.safetensors").items() if "bias" in name]
    assert biases
    moved = [group["ratio"] for group in told.values() if group["ratio"] > 0]
    assert not moved or any(bias.abs().max() > 0 for bias in biases)


def test_layers_and_names_of_the_result(tmp_path: Path) -> None:
    """Adapters of different layers, a module named as another's end: the result loads with all of it, PEFT's way."""
    kind = KINDS["llama"]
    for layer in (0, 1):
        save_adapter(
            build(kind.cls, kind.config(), seed=0), tmp_path / f"a{layer}", layer, r=2 + 6 * layer,
            target_modules=["q_proj"], layers_to_transform=[layer], init_lora_weights=False,
        )  # fmt: skip
    stockpot.merge("linear", models=[tmp_path / "a0", tmp_path / "a1"], out=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["layers_to_transform"] is None
    assert len(config["target_modules"]) == 2
    assert all(pattern.startswith("^model") for pattern in config["rank_pattern"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(build(kind.cls, kind.config(), seed=0), str(tmp_path / "out"))
    own = {name.replace(".default", "") for name, _ in model.named_parameters() if "lora_" in name}
    assert own == set(load_file(tmp_path / "out" / "adapter_model.safetensors"))
    build(kind.cls, kind.config(), seed=0).save_pretrained(tmp_path / "base")
    stockpot.open_checkpoint(f"{tmp_path / 'base'}+{tmp_path / 'out'}")


def test_the_loss_counts_modules_that_lose_nothing(tmp_path: Path) -> None:
    """The error in all is over all modules, whatever their own ranks."""
    kind = KINDS["llama"]
    for number in range(2):
        save_adapter(
            build(kind.cls, kind.config(), seed=0), tmp_path / f"a{number}", number, r=4, init_lora_weights=False,
            target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 1},
        )  # fmt: skip
    models = [tmp_path / "a0", tmp_path / "a1"]
    small = stockpot.merge("linear", models=models, out=tmp_path / "small", parameters={"rank": 2})
    stockpot.merge("linear", models=models, out=tmp_path / "exact")

    def products(folder: Path) -> dict[str, torch.Tensor]:
        state = {name: tensor.double() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
        ends = (".lora_A.weight", ".lora_B.weight")
        modules = [name.removesuffix(ends[0]) for name in state if name.endswith(ends[0])]
        return {module: state[module + ends[1]] @ state[module + ends[0]] for module in modules}

    found, exact = products(tmp_path / "small"), products(tmp_path / "exact")
    lost = sum(float((found[name] - exact[name]).square().sum()) for name in exact)
    whole = sum(float(product.square().sum()) for product in exact.values())
    assert small.lost is not None
    assert abs(small.lost.relative_error - (lost / whole) ** 0.5) < 1e-5


def test_whole_tensors_are_read_by_range(tmp_path: Path) -> None:
    """Under a small budget tensors that adapters have whole are combined piece by piece, to the same bits."""
    _, adapters = save("modules", tmp_path)
    for number, memory in enumerate(("8MiB", "192MiB")):
        stockpot.merge("linear", models=adapters, out=tmp_path / f"out{number}", memory=memory)
    one, two = ((tmp_path / f"out{n}" / "adapter_model.safetensors").read_bytes() for n in range(2))
    assert one == two


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_factor_that_is_not_finite(value: float, rank: int | None, tmp_path: Path) -> None:
    """Told by tensor, file and place, whichever adapter it is in, with or without a smaller rank."""
    base, adapters = save("plain", tmp_path)
    broken = torch.zeros(4, 32)
    broken[1, 3] = value
    edit(adapters[1], model__layers__0__self_attn__q_proj__lora_A__weight=broken)
    for models, method in ((adapters, "linear"), (adapters, "model_stock"), ([f"{base}+{adapters[1]}"], "linear")):
        options: dict[str, Any] = {"parameters": {"rank": rank}} if rank and models is adapters else {}
        with pytest.raises(errors.NonFiniteError, match=r"not finite at index \[1, 3\].*q_proj.*adapter2"):
            stockpot.merge(method, base=base, models=models, out=tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


def test_the_configuration_is_part_of_the_input(tmp_path: Path) -> None:
    """Another alpha is another job, and ``verify --recompute`` says that the input changed, not the output."""
    base, (adapter, other) = save("plain", tmp_path)
    models = [f"{base}+{adapter}", f"{base}+{other}"]
    recipe = stockpot.Recipe.from_data({"merge_method": "linear", "models": [{"model": one} for one in models]})
    before = stockpot.plan(recipe, out=tmp_path / "x").key
    stockpot.merge("linear", models=models, out=tmp_path / "out")
    change(adapter, lora_alpha=800)
    assert stockpot.plan(recipe, out=tmp_path / "x").key != before
    problems = stockpot.verify(tmp_path / "out", recompute=1.0).problems
    assert any("not the files that were merged" in said for said in problems)


def test_what_verify_says_of_weights_written_since(tmp_path: Path) -> None:
    """Other numbers in the same places: the input's file is named beside the tensors that differ."""
    _, (adapter, other) = save("plain", tmp_path)
    stockpot.merge("linear", models=[adapter, other], out=tmp_path / "out")
    assert stockpot.verify(tmp_path / "out", recompute=1.0).problems == ()
    edit(adapter, model__layers__0__self_attn__q_proj__lora_A__weight=torch.ones(4, 32))
    problems = stockpot.verify(tmp_path / "out", recompute=1.0).problems
    assert "adapter1/adapter_model.safetensors was written since the merge" in problems[0]
    assert any("its bytes differ" in said for said in problems)


def test_wrapped_names_of_whole_modules(tmp_path: Path) -> None:
    """``bias="all"`` beside a classifier: PEFT writes what wraps it as well; the model has the classifier alone."""
    kind = KINDS["bert-head"]
    build(kind.cls, kind.config(), seed=0).save_pretrained(tmp_path / "base")
    options = {"target_modules": ["query"], "bias": "all", "task_type": "SEQ_CLS"}
    save_adapter(build(kind.cls, kind.config(), seed=0), tmp_path / "a", **options)
    assert any("original_module" in name for name in load_file(tmp_path / "a" / "adapter_model.safetensors"))
    source = stockpot.open_checkpoint(f"{tmp_path / 'base'}+{tmp_path / 'a'}")
    assert source.tensors.keys() == _oracle.read(tmp_path / "base").keys()


def test_files_of_the_base_stay_as_they_are(tmp_path: Path) -> None:
    """Whole modules lie where the base has them: one file in, one file out."""
    base, (adapter, _) = save("modules", tmp_path)
    stockpot.merge("linear", models=[f"{base}+{adapter}"], out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("model*")] == ["model.safetensors"]


def refuse(kind: type[Exception], says: str, tmp_path: Path, method: str, models: list[Any], **options: Any) -> None:
    with pytest.raises(kind, match=says):
        stockpot.merge(method, models=models, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_is_refused_by_name(tmp_path: Path) -> None:
    """A module whole here and by factors there; names with and without a prefix; files and folders without their
    configuration; an adapter as base; weights that scale whole tensors; shards."""
    kind = KINDS["llama"]
    model = build(kind.cls, kind.config(), seed=0)
    base, (one, two) = save("plain", tmp_path)
    save_adapter(model, tmp_path / "whole", target_modules=["q_proj"], modules_to_save=["lm_head"])
    save_adapter(build(kind.cls, kind.config(), seed=0), tmp_path / "head", target_modules=["q_proj", "lm_head"])
    refuse(
        errors.AdapterError, "one adapter has whole and another changes.*lm_head", tmp_path, "linear",
        [tmp_path / "whole", tmp_path / "head"],
    )  # fmt: skip
    save_adapter(build(kind.cls, kind.config(), seed=0).model, tmp_path / "bare", target_modules=["q_proj"])
    refuse(errors.AdapterError, "with and without a prefix", tmp_path, "linear", [tmp_path / "bare", one])
    files = [folder / "adapter_model.safetensors" for folder in (one, two)]
    refuse(errors.AdapterError, "an adapter is no model", tmp_path, "linear", files)
    for folder in (one, two):
        shutil.copytree(folder, tmp_path / f"{folder.name}-bare")
        (tmp_path / f"{folder.name}-bare" / "adapter_config.json").unlink()
    bare = [tmp_path / f"{folder.name}-bare" for folder in (one, two)]
    refuse(errors.AdapterError, "an adapter is no model", tmp_path, "linear", bare)
    refuse(errors.AdapterError, "an adapter is no model", tmp_path, "model_stock", [one, two], base=tmp_path / "head")
    refuse(
        errors.AdapterError,
        "an adapter is no model",
        tmp_path,
        "model_stock",
        [f"{base}+{one}", f"{base}+{two}"],
        base=two,
    )
    refuse(errors.UsageError, "an adapter is one file", tmp_path, "linear", [one, two], shard_size="1KB")
    refuse(
        errors.MethodError, "do not sum to one", tmp_path, "linear", [tmp_path / "whole"],
        parameters={"weight": 1.6, "normalize": False},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"lora_alpha": float("nan")}, "a scale that is no number"),
        ({"rank_pattern": {"(" * 3000: 3}}, "absurdly long"),
        ({"rank_pattern": {"a{99999999999999999999}": 3}}, "a pattern of ranks cannot be read"),
        ({"r": None}, "cannot be read \\(r: "),
    ],
)
def test_configurations_that_are_no_good(stated: dict[str, Any], says: str, tmp_path: Path) -> None:
    """Each is told with its key, and nothing breaks over it."""
    base, (adapter, _) = save("plain", tmp_path)
    change(adapter, **stated)
    with pytest.raises(errors.AdapterError, match=says):
        stockpot.open_checkpoint(f"{base}+{adapter}")


def test_tensors_that_stand_twice_or_for_nothing(tmp_path: Path) -> None:
    """Two tensors for one factor, and a role that nobody knows, are refused."""
    base, (adapter, other) = save("plain", tmp_path)
    edit(adapter, model__layers__0__self_attn__q_proj__lora_A__default__weight=torch.zeros(4, 32))
    with pytest.raises(errors.AdapterError, match="two tensors for one factor"):
        stockpot.open_checkpoint(f"{base}+{adapter}")
    edit(other, model__layers__0__self_attn__q_proj__lora_E=torch.zeros(4))
    with pytest.raises(errors.AdapterError, match="not understood"):
        stockpot.open_checkpoint(f"{base}+{other}")


def test_different_bases_and_an_unread_one_are_said(tmp_path: Path) -> None:
    """Adapters that state different bases are merged, and it is said; so is that the base is not read."""
    base, (one, two) = save("plain", tmp_path)
    change(one, base_model_name_or_path="org/one")
    change(two, base_model_name_or_path="org/two")
    result = stockpot.merge("task_arithmetic", base=base, models=[one, two], out=tmp_path / "out")
    assert any("different bases: org/one, org/two" in said for said in result.warnings)
    assert any("the base is not read" in said for said in result.warnings)


def test_a_plus_in_names_and_the_last_of_a_run(tmp_path: Path) -> None:
    """``BASE+lora+1`` finds the folder ``lora+1``; ``last_checkpoints("BASE+RUN")`` gives adapters on their base."""
    base, (one, _) = save("plain", tmp_path)
    one.rename(tmp_path / "lora+1")
    assert stockpot.open_checkpoint(f"{base}+{tmp_path / 'lora+1'}").tensors
    for step in (1, 2, 10):
        shutil.copytree(tmp_path / "lora+1", tmp_path / "run" / f"checkpoint-{step}")
    found = stockpot.last_checkpoints(f"{base}+{tmp_path / 'run'}", 2)
    assert found == [f"{base}+{tmp_path / 'run' / f'checkpoint-{step}'}" for step in (2, 10)]
