"""Heads under whatever name an architecture gives them: stored beside the embedding they are tied to, or untied."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import stockpot

from . import _oracle
from ._plain import same_tensors, shared
from ._senses import KINDS
from ._zoo import Family, build, load, outputs_are_finite, save, train

Families = Callable[..., Family]
TIED = {
    "bert": "cls.predictions.decoder.weight",
    "roberta": "lm_head.decoder.weight",
    "distilbert": "vocab_projector.weight",
    "deberta-v2": "cls.predictions.decoder.weight",
    "albert": "predictions.decoder.weight",
    "modernbert": "decoder.weight",
    "gpt2": "lm_head.weight",
    "opt": "lm_head.weight",
    "bloom": "lm_head.weight",
    "falcon": "lm_head.weight",
    "mamba": "lm_head.weight",
    "t5": "lm_head.weight",
    "bart": "lm_head.weight",
    "whisper": "proj_out.weight",
}
MORE_THAN_THE_HEAD = ("bert", "roberta", "deberta-v2", "albert", "t5", "bart")
"""What these lack besides, when their library ties nothing."""


@pytest.mark.parametrize("name", TIED)
def test_a_tied_head_that_the_base_stores_all_the_same(name: str, families: Families, tmp_path: Path) -> None:
    """Both come out the same, and tied: a library told to untie them would look for biases that nobody stores."""
    family, head = families(name), TIED[name]
    base = save(family.base, tmp_path / "base", torch.float32, "1MB")
    stored, state = _oracle.read(base), family.base.state_dict()
    assert head not in stored
    safetensors.torch.save_file({**stored, head: state[head].clone()}, base / "model.safetensors", {"format": "pt"})
    stockpot.merge("model_stock", base=base, models=family.folders, out=tmp_path / "out")
    stockpot.merge("model_stock", base=family.base_folder, models=family.folders, out=tmp_path / "plain")
    model = load(family.kind.cls, tmp_path / "out")
    assert shared(model.state_dict()) == shared(state)
    same_tensors(model.state_dict(), load(family.kind.cls, tmp_path / "plain").state_dict())
    assert stockpot.verify(tmp_path / "out", recompute=1.0).problems == ()


@pytest.mark.parametrize("name", [name for name in TIED if name not in MORE_THAN_THE_HEAD])
def test_a_head_of_its_own_under_models_that_tie_theirs(name: str, tmp_path: Path) -> None:
    """The base's head is another than its embedding: so is the output's, by the formula, and its config says so."""
    kind, head = KINDS[name], TIED[name]
    tied = build(kind.cls, kind.config(tie_word_embeddings=True), seed=1)
    untied = build(kind.cls, kind.config(tie_word_embeddings=False), seed=0).eval()
    untied.load_state_dict(tied.state_dict())
    with torch.no_grad():
        noise = torch.randn(untied.state_dict()[head].shape, generator=torch.Generator().manual_seed(3))
        untied.get_output_embeddings().weight.add_(1e-3 * noise)
    base = save(untied, tmp_path / "base", torch.float32)
    models = [save(train(tied, kind.batch, seed=n), tmp_path / f"ft{n}", torch.float32) for n in range(2)]
    out = tmp_path / "out"
    stockpot.merge("model_stock", base=base, models=models, out=out)
    assert json.loads((out / "config.json").read_text("utf-8"))["tie_word_embeddings"] is False
    (names,) = (names for names in shared(tied.state_dict()) if head in names)
    (embedding,) = names - {head}
    start, *inputs = (_oracle.read(folder) for folder in (base, *models))
    _oracle.check_model_stock(out, start, [{**one, head: one[embedding]} for one in inputs])
    model = load(kind.cls, out)
    assert shared(model.state_dict()) == set()
    same_tensors({name: model.state_dict()[name] for name in start}, _oracle.read(out))
    assert outputs_are_finite(model, kind)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", TIED)
def test_a_pickled_base_under_models_that_store_less(
    name: str, backwards: bool, families: Families, tmp_path: Path
) -> None:
    """A ``.bin`` of before has every tied name, folders of today leave some out: merged as today's, bit for bit."""
    family = families(name)
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_bytes((family.base_folder / "config.json").read_bytes())
    state = family.base.state_dict()
    torch.save(dict(reversed(state.items())) if backwards else state, base / "pytorch_model.bin")
    assert set(family.base.state_dict()) > set(_oracle.read(family.base_folder))
    out = tmp_path / "out"
    stockpot.merge("model_stock", base=base, models=family.folders, out=out)
    stockpot.merge("model_stock", base=family.base_folder, models=family.folders, out=tmp_path / "plain")
    same_tensors(_oracle.read(out), _oracle.read(tmp_path / "plain"))
    model = load(family.kind.cls, out)
    assert shared(model.state_dict()) == shared(family.base.state_dict())
