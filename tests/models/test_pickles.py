"""State dicts of ``torch.save`` merge to the same numbers as safetensors, and come out as safetensors."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import stockpot

from . import _oracle
from ._forms import pickled_folder, pickled_shards
from ._plain import same_tensors, shared
from ._zoo import Family, build, load, outputs_are_finite

Families = Callable[..., Family]


@pytest.mark.parametrize("name", ["llama", "resnet"])
def test_a_pickled_folder_of_bfloat16(name: str, families: Families, tmp_path: Path) -> None:
    """``pytorch_model.bin`` in a folder comes out as ``model.safetensors`` with the same tensors, and loads."""
    family = families(name, torch.bfloat16)
    models = [copy.deepcopy(model).to(torch.bfloat16) for model in (family.base, *family.models)]
    folders = [
        pickled_folder(model, family.base_folder, tmp_path / f"in{number}") for number, model in enumerate(models)
    ]
    stockpot.merge("model_stock", base=folders[0], models=folders[1:], out=tmp_path / "out")
    stockpot.merge("model_stock", base=family.base_folder, models=family.folders, out=tmp_path / "plain")
    assert [p.name for p in (tmp_path / "out").glob("model*")] == ["model.safetensors"]
    assert not list((tmp_path / "out").glob("*.bin"))
    same_tensors(_oracle.read(tmp_path / "out"), _oracle.read(tmp_path / "plain"))
    model = load(family.kind.cls, tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert outputs_are_finite(model, family.kind)


@pytest.mark.parametrize("writer", [pickled_folder, pickled_shards], ids=("one", "shards"))
@pytest.mark.parametrize("name", ["gemma", "bert", "t5"])
def test_a_tied_pickle_is_one_tensor(
    name: str, writer: Callable[..., Path], families: Families, tmp_path: Path
) -> None:
    """Names that share storage in a pickle are merged once, and tied again after loading; shards cannot share it."""
    family = families(name, torch.float32)
    folders = [
        writer(model, family.base_folder, tmp_path / f"in{number}")
        for number, model in enumerate((family.base, *family.models))
    ]
    stockpot.merge("model_stock", base=folders[0], models=folders[1:], out=tmp_path / "out")
    stockpot.merge("model_stock", base=family.base_folder, models=family.folders, out=tmp_path / "plain")
    found, expected = _oracle.read(tmp_path / "out"), _oracle.read(tmp_path / "plain")
    state = family.base.state_dict()
    places = {name: state[name].data_ptr() for name in state}
    assert {places[name] for name in found} == {places[name] for name in expected}
    by_place = {places[name]: tensor for name, tensor in expected.items()}
    for tensor_name, tensor in found.items():
        assert torch.equal(tensor, by_place[places[tensor_name]]), tensor_name
    if writer is pickled_folder:
        assert len(found) == len(expected)
    model = load(family.kind.cls, tmp_path / "out")
    own = model.state_dict()
    assert shared(own) == shared(state)
    for names in shared(state):
        assert all(torch.equal(own[one], by_place[places[one]]) for one in names)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_lone_state_dicts_to_one_file(suffix: str, families: Families, tmp_path: Path) -> None:
    """Lone ``torch.save`` files merge into ``OUT.safetensors``, which loads into the architecture by its library."""
    family = families("llama", torch.float32)
    files = []
    for number, model in enumerate((family.base, *family.models)):
        files.append(tmp_path / f"in{number}{suffix}")
        torch.save(model.state_dict(), files[-1])
    out = tmp_path / "OUT.safetensors"
    result = stockpot.merge("model_stock", base=files[0], models=files[1:], out=out)
    assert out.is_file()
    assert [p.name for p in tmp_path.iterdir() if "OUT" in p.name] == ["OUT.safetensors"]
    stockpot.merge("model_stock", base=family.base_folder, models=family.folders, out=tmp_path / "plain")
    same_tensors(_oracle.read(out), _oracle.read(tmp_path / "plain"))
    fresh = build(family.kind.cls, family.kind.config(), seed=9)
    assert safetensors.torch.load_model(fresh, out) == (set(), [])
    assert outputs_are_finite(fresh.eval(), family.kind)
    assert result.tensors == len(_oracle.read(out))
    assert stockpot.verify(out, recompute=1.0).problems == ()


@pytest.mark.parametrize("name", ["gemma", "t5"])
def test_a_tied_pickle_to_one_file(name: str, families: Families, tmp_path: Path) -> None:
    """A tied lone state dict comes out with its aliases said in the header, and ties again in a fresh model."""
    family = families(name, torch.float32)
    files = []
    for number, model in enumerate((family.base, *family.models)):
        files.append(tmp_path / f"in{number}.pt")
        torch.save(model.state_dict(), files[-1])
    out = tmp_path / "OUT.safetensors"
    stockpot.merge("model_stock", base=files[0], models=files[1:], out=out)
    with safetensors.safe_open(out, "pt") as handle:
        metadata = handle.metadata()
        stored = set(handle.keys())
    state = family.base.state_dict()
    for alias in set(state) - stored:
        assert metadata[alias] in stored
        assert state[metadata[alias]].data_ptr() == state[alias].data_ptr()
    fresh = build(family.kind.cls, family.kind.config(), seed=9)
    missing, unexpected = safetensors.torch.load_model(fresh, out)
    assert (missing, unexpected) == (set(), [])
    assert shared(fresh.state_dict()) == shared(state) != set()
    assert outputs_are_finite(fresh.eval(), family.kind)


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_one_pt_file_out(name: str, families: Families, tmp_path: Path) -> None:
    """OUT ending in ``.pt`` is one file that ``torch.load`` opens with weights only, ties and all."""
    family = families(name, torch.float32)
    files = []
    for number, model in enumerate((family.base, *family.models)):
        files.append(tmp_path / f"in{number}.pt")
        torch.save(model.state_dict(), files[-1])
    out = tmp_path / "OUT.pt"
    stockpot.merge("model_stock", base=files[0], models=files[1:], out=out)
    found = torch.load(out, weights_only=True)
    stockpot.merge("model_stock", base=family.base_folder, models=family.folders, out=tmp_path / "plain")
    for tensor_name, tensor in _oracle.read(tmp_path / "plain").items():
        assert torch.equal(found[tensor_name], tensor), tensor_name
    fresh = build(family.kind.cls, family.kind.config(), seed=9)
    assert not any(fresh.load_state_dict(found))
    assert shared(found) == shared(family.base.state_dict())
    assert stockpot.verify(out, recompute=1.0).problems == ()


def test_a_folder_into_one_file(families: Families, tmp_path: Path) -> None:
    """Sharded folders merge into one ``.safetensors`` file with the same tensors and its provenance inside."""
    family = families("bert", torch.bfloat16)
    out = tmp_path / "OUT.safetensors"
    stockpot.merge("model_stock", base=family.base_folder, models=family.folders, out=out)
    stockpot.merge("model_stock", base=family.base_folder, models=family.folders, out=tmp_path / "plain")
    same_tensors(_oracle.read(out), _oracle.read(tmp_path / "plain"))
    with safetensors.safe_open(out, "pt") as handle:
        record = json.loads(handle.metadata()["stockpot"])
        assert handle.metadata()["format"] == "pt"
    plain = json.loads((tmp_path / "plain" / "stockpot.json").read_text("utf-8"))
    assert record["groups"] == plain["groups"]
    assert record["tensors"] == plain["tensors"]
    assert stockpot.verify(out, recompute=1.0).problems == ()


def test_wrapped_and_prefixed_state_dicts(families: Families, tmp_path: Path) -> None:
    """A training script's ``{"model": {"module.x": ...}}`` is unwrapped; beside plain inputs it is the same merge."""
    family = families("llama", torch.float32)
    base, *models = (model.state_dict() for model in (family.base, *family.models))
    torch.save({"model": {f"module.{k}": v for k, v in base.items()}, "epoch": 3}, tmp_path / "in0.pt")
    torch.save({"state_dict": {f"_orig_mod.{k}": v for k, v in models[0].items()}}, tmp_path / "in1.ckpt")
    torch.save(models[1], tmp_path / "in2.bin")
    out = tmp_path / "OUT.safetensors"
    stockpot.merge(
        "model_stock", base=tmp_path / "in0.pt", models=[tmp_path / "in1.ckpt", tmp_path / "in2.bin"], out=out
    )
    expected = stockpot.merge_state_dicts("model_stock", base=base, models=models[:2])
    same_tensors(_oracle.read(out), expected)
