"""Tokenizers in recipes of several documents and of slices."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from tests.vocabulary._zoo import loaded, make, permuted, tokenizer

from stockpot.cli import main
from stockpot.engine import verify

DOCUMENTS = """\
merge_method: linear
models: [{model: half}, {model: y}]
parameters: {weight: 0.5}
tokenizer_source: half
---
name: half
merge_method: passthrough
models: [{model: x}]
"""
STACK = """\
merge_method: passthrough
slices:
  - sources: [{model: x, layer_range: [0, 1]}]
  - sources: [{model: y, layer_range: [0, 2]}]
tokenizer: {source: union}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models, the second's tokens numbered otherwise, with one more."""
    make(tmp_path / "x", tokenizer(), 1)
    make(tmp_path / "y", permuted(tokenizer(added=["<more>"]))[0], 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("text", "layers", "has_more"), [(DOCUMENTS, 2, False), (STACK, 3, True)])
def test_output_loads(text: str, layers: int, has_more: bool, place: Path) -> None:
    """The output has the tokenizer that was asked for, by a document's name too, and loads with as many layers."""
    (place / "recipe.yaml").write_text(text)
    assert main(["check", "recipe.yaml"]) == 0
    assert main(["merge", "recipe.yaml", "--out", "out"]) == 0
    assert verify(place / "out", recompute=1.0).problems == ()
    model, tokens = loaded(place / "out")
    assert model.config.num_hidden_layers == layers
    own = transformers.AutoTokenizer.from_pretrained(place / "x").get_vocab()
    assert set(tokens.get_vocab()) == {*own, *(["<more>"] if has_more else [])}
    assert model.get_input_embeddings().weight.shape[0] >= len(tokens)


def test_a_part_of_another_vocabulary_is_made_anew(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part that brought tokenizers together is taken again, until one of them changes."""
    text = "name: both\nmerge_method: linear\nmodels: [{model: x}, {model: y}]\nparameters: {weight: 0.5}\n"
    text += "tokenizer_source: base\nbase_model: x\n---\nmerge_method: passthrough\nmodels: [{model: both}]\n"
    (place / "recipe.yaml").write_text(text)
    again = ["merge", "recipe.yaml", "--out", "out", "--overwrite"]
    assert main(again) == main(again) == 0
    assert "made before by the same job" in capsys.readouterr().err
    file = place / "y" / "tokenizer.json"
    file.write_text(file.read_text("utf-8").replace("<more>", "<much>"), "utf-8")
    assert main(again) == 0
    assert "made before by the same job" not in capsys.readouterr().err
