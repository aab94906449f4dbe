"""The output's tokenizer: it loads, and writes text as those whose tokens it has."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import stockpot

from . import _zoo
from ._zoo import CHAT, loaded, make, sentences, tokenizer
from .test_models import recipe


def united(root: Path, *tokens: PreTrainedTokenizerFast, **keys: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of a merge of models with these ones."""
    folders = [make(root / f"model{number}", own, number) for number, own in enumerate(tokens)]
    stockpot.merge(recipe(folders, **{"tokenizer_source": "union", **keys}), out=root / "out")
    model, found = loaded(root / "out")
    assert model.config.vocab_size == len(found) == max(found.get_vocab().values()) + 1
    assert len(model.get_input_embeddings().weight) == len(model.get_output_embeddings().weight) == len(found)
    assert isinstance(found, PreTrainedTokenizerFast)
    return found


def words(own: Any, line: str) -> list[str]:
    """A text cut into tokens."""
    found = own.convert_ids_to_tokens(own(line, add_special_tokens=False).input_ids)
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "wordlevel"])
def test_further_added_tokens_and_nothing_else_changes(kind: str, tmp_path: Path) -> None:
    """One vocabulary, each with added tokens of its own: each writes text, with its tokens in it, as it did."""
    one, two = tokenizer(kind, added=["<one>", "spam"]), tokenizer(kind, added=["<two>", CHAT[0], "<one>"])
    found = united(tmp_path, one, two)
    assert set(found.get_vocab()) == set(one.get_vocab()) | set(two.get_vocab())
    for line in sentences():
        for own, mark in ((one, "<one>"), (one, "spam"), (two, CHAT[0]), (two, "<two>")):
            assert words(found, f"{line} {mark} {line}") == words(own, f"{line} {mark} {line}")
    assert {token: number for token, number in found.get_vocab().items() if token in one.get_vocab()} == one.get_vocab()
    assert found.decode(found(f"a {CHAT[0]} b").input_ids, skip_special_tokens=True).split() == ["a", "b"]
    assert "spam" in found.decode(found("a spam b").input_ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "wordlevel"])
def test_a_vocabulary_that_extends_another_is_had_again(kind: str, tmp_path: Path) -> None:
    """A small tokenizer and its extension, added tokens in between: the union writes as the extension does."""
    small, large = tokenizer(kind, 280, added=["<one>"]), tokenizer(kind, 400, added=["<two>"])
    assert set(small.get_vocab()) - {"<one>"} < set(large.get_vocab())
    found = united(tmp_path, small, large)
    assert set(found.get_vocab()) == set(small.get_vocab()) | set(large.get_vocab())
    for line in sentences():
        assert words(found, f"{line} <two>") == words(large, f"{line} <two>")
        assert found.decode(found(line).input_ids) == large.decode(large(line).input_ids)
    assert "<one>" in words(found, "a <one> b")


def test_pieces_with_scores(tmp_path: Path) -> None:
    """Unigram: pieces of both, with the scores that they came with; every text can be written, and read again."""
    one, two = tokenizer("unigram", 200, added=["<one>"]), tokenizer("unigram", 200, "argparse", added=["<two>"])
    found = united(tmp_path, one, two)
    assert set(found.get_vocab()) == set(one.get_vocab()) | set(two.get_vocab())
    scores = {own: dict(json.loads(own.backend_tokenizer.to_str())["model"]["vocab"]) for own in (found, one, two)}
    for token in found.get_vocab():
        known = next((scores[own][token] for own in (one, two) if token in scores[own]), 0.0)
        assert scores[found].get(token, 0.0) == pytest.approx(known, rel=1e-12)
    for line in sentences():
        assert found.decode(found(line).input_ids) == one.decode(one(line).input_ids) or "<unk>" in words(one, line)


def test_unlike_vocabularies_keep_the_first_one_s_numbers(tmp_path: Path) -> None:
    """Two trained apart: the first one's numbers stay, every token is there, and text goes through unharmed."""
    one, two = tokenizer(corpus="textwrap", size=350), tokenizer(corpus="argparse", size=350)
    found = united(tmp_path, one, two)
    ids = found.get_vocab()
    assert {token: ids[token] for token in one.get_vocab()} == one.get_vocab()
    assert set(ids) == set(one.get_vocab()) | set(two.get_vocab())
    assert any(token not in one.get_vocab() for line in sentences() for token in words(found, line))
    for line in sentences():
        assert found.decode(found(line).input_ids) == line


def test_other_kinds_have_no_union_but_their_added_tokens(tmp_path: Path) -> None:
    """A chat model's marks can be had whatever kind its tokenizer is; its own tokens cannot."""
    one = tokenizer("wordlevel", 40)
    special = json.loads(one.backend_tokenizer.to_str())
    special["model"]["vocab"] = {token: number for number, token in enumerate(_zoo.SPECIAL)}
    marks = _zoo.wrapped(_zoo.tokenizers.Tokenizer.from_str(json.dumps(special)))
    marks.add_tokens(CHAT, special_tokens=True)
    found = united(tmp_path, tokenizer(), marks)
    assert {*CHAT} <= set(found.get_vocab())
    with pytest.raises(stockpot.errors.TokenizerError, match="different kinds"):
        united(tmp_path / "next", tokenizer(), one)


@pytest.mark.parametrize("source", ["base", "model1"])
def test_a_tokenizer_that_stays_is_copied(source: str, tmp_path: Path) -> None:
    """Its files come along byte for byte, older forms too; the template's do not."""
    tokens = [tokenizer(added=["<zero>"]), tokenizer(added=["<one>"])]
    folders = [make(tmp_path / f"model{number}", own, number) for number, own in enumerate(tokens)]
    for number, folder in enumerate(folders):
        (folder / "merges.txt").write_text(f"{number}\n")
        (folder / "added_tokens.json").write_text(f"[{number}]\n")
    (folders[0] / "vocab.json").write_text("{}\n")
    wanted = "base" if source == "base" else str(folders[1])
    stockpot.merge(recipe(folders, tokenizer_source=wanted), out=tmp_path / "out")
    own = folders[0] if source == "base" else folders[1]
    for name in ("tokenizer.json", "tokenizer_config.json", "merges.txt", "added_tokens.json"):
        assert (tmp_path / "out" / name).read_bytes() == (own / name).read_bytes()
    assert (tmp_path / "out" / "vocab.json").exists() is (source == "base")


def test_a_tokenizer_of_none_of_the_inputs(tmp_path: Path) -> None:
    """A folder that has no weights can lend its tokenizer."""
    folders = [make(tmp_path / f"model{number}", tokenizer(added=["<x>"]), number) for number in range(2)]
    _zoo.permuted(tokenizer())[0].save_pretrained(tmp_path / "alone")
    stockpot.merge(recipe(folders, tokenizer_source=tmp_path / "alone"), out=tmp_path / "out")
    assert loaded(tmp_path / "out")[1].get_vocab() == AutoTokenizer.from_pretrained(tmp_path / "alone").get_vocab()


def test_a_token_of_another_input_comes_with_its_flags(tmp_path: Path) -> None:
    """Named under ``tokens``, and not in the tokenizer chosen: added, special where another input has it so."""
    tokens = {CHAT[0]: {"source": {"kind": "zero"}}, "spam": {"source": {"kind": "zero"}}}
    keys = {"tokenizer": {"source": "base", "tokens": tokens}, "tokenizer_source": None}
    found = united(tmp_path, tokenizer(), tokenizer(added=CHAT), **keys)
    assert set(found.get_vocab()) == {*tokenizer().get_vocab(), CHAT[0], "spam"}
    assert found.decode(found(f"a{CHAT[0]}spam").input_ids, skip_special_tokens=True) == "aspam"


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    """A union is written alike whenever it is written."""
    found = set()
    for number in range(2):
        united(tmp_path / str(number), tokenizer(added=["<one>"]), tokenizer(size=320, added=CHAT))
        found.add(hashlib.sha256((tmp_path / str(number) / "out" / "tokenizer.json").read_bytes()).digest())
    assert len(found) == 1


@pytest.mark.parametrize("cls", ["GPT2TokenizerFast", "LlamaTokenizerFast", "Qwen2TokenizerFast", "BertTokenizerFast"])
def test_tokenizers_of_known_models(cls: str, tmp_path: Path) -> None:
    """Classes of transformers that build themselves anew from what the file says get all tokens too."""
    import transformers

    kind = "wordpiece" if cls.startswith("Bert") else "bpe"
    tokens = []
    for number in range(2):
        tokenizer(kind, (280, 400)[number]).save_pretrained(tmp_path / f"plain{number}")
        config = tmp_path / f"plain{number}" / "tokenizer_config.json"
        stated = json.loads(config.read_text("utf-8"))
        config.write_text(json.dumps({**stated, "tokenizer_class": cls.removesuffix("Fast")}), "utf-8")
        own = getattr(transformers, cls).from_pretrained(tmp_path / f"plain{number}")
        own.add_tokens([CHAT[number]], special_tokens=True)
        tokens.append(own)
    found = united(tmp_path, *tokens)
    assert set(found.get_vocab()) == set(tokens[0].get_vocab()) | set(tokens[1].get_vocab())
    assert type(found) is type(tokens[0])
    for line in sentences(10):
        assert words(found, f"{line}{CHAT[1]}") == words(tokens[1], f"{line}{CHAT[1]}")
