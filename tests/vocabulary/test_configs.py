"""Configurations follow the output's vocabulary: its size, and the numbers of special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

import stockpot
from stockpot.vocabulary._config import numbering

from . import _zoo
from ._zoo import CHAT, loaded, make, tokenizer
from .test_models import recipe


def state(folder: Path, name: str, **changed: Any) -> None:
    """Change a JSON file of a folder."""
    file = folder / name
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**known, **changed}), "utf-8")


def test_special_tokens_keep_what_they_are(tmp_path: Path) -> None:
    """The same tokens by other numbers: the output's configurations name them by their new ones."""
    other, order = _zoo.permuted(tokenizer(added=["<pad>"], pad_token="<pad>"))
    other.pad_token = "<pad>"
    a = make(tmp_path / "a", tokenizer(added=["<pad>"], pad_token="<pad>"), 1)
    b = make(tmp_path / "b", other, 2)
    pad = tokenizer(added=["<pad>"]).convert_tokens_to_ids("<pad>")
    state(a, "config.json", pad_token_id=pad)
    state(a, "generation_config.json", pad_token_id=pad, eos_token_id=[2, pad], bos_token_id=1, suppress_tokens=[0, 5])
    stockpot.merge(recipe([a, b], tokenizer_source=b), out=tmp_path / "out")
    model, tokens = loaded(tmp_path / "out")
    ids = tokens.get_vocab()
    assert model.config.eos_token_id == tokens.eos_token_id == ids["</s>"] == order.index(2)
    assert model.config.bos_token_id == tokens.bos_token_id == ids["<s>"]
    assert model.config.pad_token_id == tokens.pad_token_id == ids["<pad>"]
    said = model.generation_config
    assert said.eos_token_id == [ids["</s>"], ids["<pad>"]]
    assert said.pad_token_id == ids["<pad>"]
    assert said.suppress_tokens == [order.index(0), order.index(5)]


def test_a_tokenizer_that_ends_otherwise(tmp_path: Path) -> None:
    """Where the output's tokenizer ends a text with another token, the configurations say so too."""
    a = make(tmp_path / "a", tokenizer(), 1)
    b = make(tmp_path / "b", tokenizer(added=CHAT, eos_token=CHAT[1]), 2)
    state(a, "generation_config.json", eos_token_id=2, bos_token_id=1)
    stockpot.merge(recipe([a, b], tokenizer_source=b), out=tmp_path / "out")
    model, tokens = loaded(tmp_path / "out")
    assert tokens.eos_token == CHAT[1]
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokens.eos_token_id
    assert model.config.bos_token_id == 1


def test_configurations_without_change_are_copied(tmp_path: Path) -> None:
    """A tokenizer with further tokens changes no number of those that were there."""
    a, b = make(tmp_path / "a", tokenizer(), 1), make(tmp_path / "b", tokenizer(added=CHAT), 2)
    stockpot.merge(recipe([a, b], tokenizer_source="union"), out=tmp_path / "out")
    for name in ("generation_config.json",):
        assert (tmp_path / "out" / name).read_bytes() == (a / name).read_bytes()
    assert loaded(tmp_path / "out")[0].config.vocab_size == len(tokenizer()) + 2


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"vocab_size": 4}, {"vocab_size": 6}),
        ({"vocab_size": 9}, {"vocab_size": 9}),
        ({"text_config": {"vocab_size": 4, "eos_token_id": 1}}, {"text_config": {"vocab_size": 6, "eos_token_id": 5}}),
        ({"eos_token_id": [1, 3]}, {"eos_token_id": [5, 2]}),
        ({"pad_token_id": -1, "sep_token_id": None}, {"pad_token_id": -1, "sep_token_id": None}),
        ({"pad_token_id": 3}, {"pad_token_id": 2}),
        ({"image_token_index": 2}, {"image_token_index": None}),
        ({"eos_token_id": [3, 2]}, {"eos_token_id": [5, 2]}),
        ({"eos_token_id": []}, {"eos_token_id": []}),
        ({"begin_suppress_tokens": [0, 2]}, {"begin_suppress_tokens": [0]}),
        ({"eos_token_id": True}, {"eos_token_id": True}),
        ({"hidden_size": 4, "num_token_ids_kept": 2}, {"hidden_size": 4, "num_token_ids_kept": 2}),
    ],
)
def test_numbers_in_configurations(config: dict[str, Any], expected: dict[str, Any]) -> None:
    """Sizes where they are this model's; tokens by their new numbers, the one that ends a text by the new one."""
    own, ids = {"a": 0, "</s>": 1, "gone": 2, "d": 3}, {"a": 0, "d": 2, "<end>": 5}
    its = numbering(own, ids, ({"eos": "</s>"}, {"eos": "<end>", "pad": "none"}), (4, 6))
    assert json.loads(its.changed(json.dumps(config).encode())) == expected
    assert list(its.lost(config)) == [key for key in config if expected[key] is None is not config[key]]
    assert its.changed(b"[1, 2]") == b"[1, 2]"
    assert its.changed(b"{no") == b"{no"


def test_a_configuration_in_parts(tmp_path: Path) -> None:
    """A model that sees and reads states the size of its vocabulary in a part."""
    folders = []
    for number, tokens in enumerate((tokenizer(), tokenizer(added=CHAT))):
        config = transformers.LlavaConfig(
            text_config=_zoo.CONFIGS["llama"](len(tokens)),
            vision_config=transformers.CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=8,
                patch_size=4,
            ),
            image_token_index=5,
        )
        model = _zoo.seeded(lambda config=config: transformers.LlavaForConditionalGeneration(config), number)
        folders.append(_zoo.save(tmp_path / f"model{number}", model, tokens))
    stockpot.merge(recipe(folders, tokenizer_source="union"), out=tmp_path / "out")
    model, told = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values()), told
    assert model.config.text_config.vocab_size == len(tokenizer()) + 2 == len(model.get_input_embeddings().weight)
