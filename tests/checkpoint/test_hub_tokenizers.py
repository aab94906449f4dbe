"""Tokenizers of models on the hub: read when the merge is planned, before any weight is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.vocabulary._zoo import CHAT, loaded, make, tokenizer, weights
from tests.vocabulary.test_models import recipe

import stockpot

from ._hub_stub import Hub


def test_models_of_different_vocabularies_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    """The plan needs headers and tokenizers alone; the merge is that of the same folders."""
    folders = [make(tmp_path / "a", tokenizer(), 1), make(tmp_path / "b", tokenizer(size=320, added=CHAT), 2)]
    for folder in folders:
        hub.add(f"org/{folder.name}", {file.name: file.read_bytes() for file in folder.iterdir()})
    wanted = {"source": "union", "tokens": {CHAT[0]: {"source": "org/b", "force": True}}, "pad_to_multiple_of": 8}
    chosen = recipe([Path("org/a"), Path("org/b")], tokenizer=wanted)
    plan = stockpot.plan(chosen, out=tmp_path / "out")
    assert plan.bytes_to_download > sum((folder / "model.safetensors").stat().st_size for folder in folders) // 2
    assert not any("safetensors" in name for name in hub.whole())
    stockpot.merge(chosen, out=tmp_path / "out")
    local = {**wanted, "tokens": {CHAT[0]: {"source": str(folders[1]), "force": True}}}
    stockpot.merge(recipe(folders, tokenizer=local), out=tmp_path / "expected")
    found, expected = weights(tmp_path / "out"), weights(tmp_path / "expected")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert loaded(tmp_path / "out")[1].get_vocab() == loaded(tmp_path / "expected")[1].get_vocab()
    assert stockpot.verify(tmp_path / "out", recompute=1.0).problems == ()
