"""Files in and out: shards of one size in, of another out, or as the template has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import stockpot

from . import _oracle
from ._zoo import Family, load, save

Families = Callable[..., Family]


def weights(folder: Path) -> list[Path]:
    """The weight files of a folder."""
    return sorted(path for path in folder.glob("model*.safetensors"))


def check_index(folder: Path) -> None:
    """The index names exactly what each shard holds, and its total is the bytes of the tensors."""
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    found = {name: file.name for file in weights(folder) for name in _oracle.read(file)}
    assert index["weight_map"] == found
    tensors = _oracle.read(folder)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_shards_of_another_size_out(name: str, families: Families, tmp_path: Path) -> None:
    """``shard_size`` splits anew: no shard above it unless one tensor is, a true index, and the same tensors."""
    family = families(name, torch.float32)
    plain, resharded = tmp_path / "plain", tmp_path / "resharded"
    stockpot.merge("model_stock", base=family.base_folder, models=family.folders, out=plain)
    stockpot.merge("model_stock", base=family.base_folder, models=family.folders, out=resharded, shard_size="9KB")
    assert len(weights(resharded)) > len(weights(plain)) > 1
    for folder in (plain, resharded):
        check_index(folder)
        total = len(weights(folder))
        names = [f"model-{n:05d}-of-{total:05d}.safetensors" for n in range(1, total + 1)]
        assert [path.name for path in weights(folder)] == names
    for file in weights(resharded):
        sizes = [t.numel() * t.element_size() for t in _oracle.read(file).values()]
        assert sum(sizes) <= 9000 or len(sizes) == 1
    first, second = _oracle.read(plain), _oracle.read(resharded)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    load(family.kind.cls, resharded)


def test_one_large_shard_out(families: Families, tmp_path: Path) -> None:
    """A shard size above the whole gives one ``model.safetensors`` and no index."""
    family = families("llama", torch.float32)
    stockpot.merge("linear", models=family.folders, out=tmp_path / "merged", shard_size="1GB")
    assert [path.name for path in weights(tmp_path / "merged")] == ["model.safetensors"]
    assert not (tmp_path / "merged" / "model.safetensors.index.json").exists()
    load(family.kind.cls, tmp_path / "merged")


def test_inputs_sharded_each_in_their_own_way(families: Families, tmp_path: Path) -> None:
    """How an input is cut changes no bit; the layout is the first model's."""
    family = families("bert", torch.float32)
    base = save(family.base, tmp_path / "base", torch.float32, shard="1MB")
    sizes = ("1MB", "10KB", "40KB")
    models = [
        save(model, tmp_path / f"ft{n}", torch.float32, shard=size)
        for n, (model, size) in enumerate(zip(family.models, sizes, strict=True))
    ]
    stockpot.merge("model_stock", base=base, models=models, out=tmp_path / "merged")
    stockpot.merge("model_stock", base=family.base_folder, models=family.folders, out=tmp_path / "plain")
    assert [path.name for path in weights(tmp_path / "merged")] == ["model.safetensors"]
    first, second = _oracle.read(tmp_path / "plain"), _oracle.read(tmp_path / "merged")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    load(family.kind.cls, tmp_path / "merged")


def test_a_merge_of_merges_loads(families: Families, tmp_path: Path) -> None:
    """An output is an input like any other: its provenance and geometry are no weights and are not inherited."""
    family = families("gemma", torch.bfloat16)
    for number in (1, 2):
        stockpot.merge(
            "model_stock",
            base=family.base_folder,
            models=family.folders[number - 1 : number + 1],
            out=tmp_path / f"m{number}",
        )
    out = tmp_path / "merged"
    stockpot.merge("linear", models=[tmp_path / "m1", tmp_path / "m2"], out=out)
    load(family.kind.cls, out)
    assert json.loads((out / "stockpot.json").read_text("utf-8"))["recipe"]["merge_method"] == "linear"
    assert not (out / "stockpot_geometry.safetensors").exists()
    assert stockpot.verify(out, recompute=1.0).problems == ()


def test_rubbish_beside_the_weights_is_left(families: Families, tmp_path: Path) -> None:
    """Training state, hidden files and earlier checkpoints are not copied; code and chat templates are."""
    family = families("llama", torch.float32)
    models = [save(m, tmp_path / f"ft{n}", torch.float32, "1MB") for n, m in enumerate(family.models)]
    left = (
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "training_args.bin",
        ".secret",
        "README.md",
    )
    kept = ("modeling_own.py", "chat_template.jinja", "tokenizer.json", "special_tokens_map.json")
    for name in (*left, *kept):
        (models[0] / name).write_text("{}", "utf-8")
    (models[0] / "checkpoint-10").mkdir()
    (models[0] / "checkpoint-10" / "config.json").write_text("{}", "utf-8")
    out = tmp_path / "merged"
    stockpot.merge("linear", models=models, out=out)
    found = {path.name for path in out.iterdir()}
    assert found & set(left) == {"README.md"}
    assert "stockpot" in (out / "README.md").read_text("utf-8")
    assert set(kept) <= found
    assert "checkpoint-10" not in found
    load(family.kind.cls, out)
