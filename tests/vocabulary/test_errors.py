"""What is wrong with tokenizers is told before any weight is read, with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli._kitchen import Program, save

from ._zoo import CHAT, make, tokenizer, weights
from .test_configs import state
from .test_models import recipe


def content(folder: Path) -> dict[str, Any]:
    """Its ``tokenizer.json``."""
    found = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def put(folder: Path, found: object) -> None:
    """Write its ``tokenizer.json``."""
    (folder / "tokenizer.json").write_text(json.dumps(found), "utf-8")


def change(folder: Path, **model: Any) -> None:
    """Change the model of its tokenizer."""
    found = content(folder)
    found["model"].update(model)
    put(folder, found)


def double(folder: Path) -> None:
    """Two tokens of one number."""
    found = content(folder)
    vocabulary = found["model"]["vocab"]
    del vocabulary["!"]
    vocabulary["twice"] = 5
    put(folder, found)


def misnumber(folder: Path) -> None:
    """An added token that says another number than it gets."""
    found = content(folder)
    found["added_tokens"][-1]["id"] += 3
    put(folder, found)


def old(folder: Path) -> None:
    """Only sentencepiece's own file."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x05")


def nameless(folder: Path) -> None:
    """An embedding by a name that nobody knows."""
    tensors = {name.replace("embed_tokens", "table"): tensor for name, tensor in weights(folder).items()}
    save(tensors, folder, {"format": "pt"})


def headless(folder: Path) -> None:
    """No head, though nothing says that it is tied, and no embedding that it could be tied to."""
    tensors = {name: tensor for name, tensor in weights(folder).items() if name != "lm_head.weight"}
    save(
        tensors | {"spare.embed_tokens.weight": tensors["model.embed_tokens.weight"].clone()}, folder, {"format": "pt"}
    )


BREAKS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "none": (lambda folder: (folder / "tokenizer.json").unlink(), ["has no tokenizer", "put tokenizer.json"]),
    "old": (old, ["older form", "tokenizer.model", "save_pretrained"]),
    "no JSON": (lambda folder: (folder / "tokenizer.json").write_bytes(b"{"), ["no JSON", "tokenizer.json"]),
    "deep JSON": (lambda folder: (folder / "tokenizer.json").write_bytes(b"[" * 100_000), ["no JSON"]),
    "no object": (lambda folder: put(folder, [1]), ["no JSON object", "got list"]),
    "no model": (lambda folder: put(folder, {}), ["unknown kind", "expected BPE"]),
    "kind": (lambda folder: change(folder, type="Magic"), ["unknown kind", "'Magic'"]),
    "vocab": (lambda folder: change(folder, vocab={"a": -1}), ["no map of tokens to numbers"]),
    "far number": (lambda folder: change(folder, vocab={"a": 1 << 40}), ["no map of tokens to numbers"]),
    "pieces": (lambda folder: change(folder, vocab=[["a"]]), ["no list of pieces"]),
    "added": (lambda folder: put(folder, {**content(folder), "added_tokens": [{"id": 1}]}), ["no content and id"]),
    "double": (double, ["two tokens have one number", "'twice'"]),
    "misnumbered": (misnumber, ["gets another number", CHAT[1]]),
    "merge": (lambda folder: change(folder, merges=["a", "b"]), ["a merge of a tokenizer is no pair"]),
    "config": (lambda folder: (folder / "tokenizer_config.json").write_bytes(b"?"), ["no JSON", "tokenizer_config"]),
    "size": (lambda folder: state(folder, "config.json", vocab_size=77), ["embedding of tokens cannot be told", "77"]),
    "nameless": (nameless, ["embedding of tokens cannot be told"]),
}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two models; the second has tokens of its own."""
    return [make(tmp_path / "a", tokenizer(), 1), make(tmp_path / "b", tokenizer(size=320, added=CHAT), 2)]


def write(root: Path, folders: list[Path], **keys: Any) -> Path:
    """A recipe's file."""
    file = root / "recipe.yaml"
    file.write_text(recipe(folders, **keys).to_yaml(), "utf-8")
    return file


@pytest.mark.parametrize("case", BREAKS)
def test_tokenizers_that_cannot_be_used(case: str, folders: list[Path], tmp_path: Path, program: Program) -> None:
    """Damaged, missing, of an old form, or not that of the weights."""
    breaks, says = BREAKS[case]
    breaks(folders[1])
    file = write(tmp_path, folders, tokenizer_source="union")
    program.refuses("merge", file, "--out", tmp_path / "out", kind="tokenizer", says=says)


def one(token: str, source: object) -> dict[str, Any]:
    """The key ``tokenizer`` with a source for one token."""
    return {"tokenizer": {"source": "union", "tokens": {token: {"source": source}}}}


KEYS: dict[str, tuple[Callable[[str, str], dict[str, Any]], str, list[str]]] = {
    "source": (lambda a, b: {"tokenizer_source": a + "x"}, "not_found", ["none of the inputs", "did you mean"]),
    "model": (lambda a, b: one(CHAT[0], b + "x"), "tokenizer", ["none of the inputs", "did you mean"]),
    "token": (lambda a, b: one(CHAT[0], a), "tokenizer", ["has no token '<|im_start|>'"]),
    "near": (
        lambda a, b: one(CHAT[0], {"kind": "model_token", "model": b, "token": "<|im_strat|>"}),
        "tokenizer", ["did you mean <|im_start|>?"],
    ),
    "number": (
        lambda a, b: one(CHAT[0], {"kind": "model_token", "model": b, "token_id": 5000}),
        "tokenizer", ["none of number 5000"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KEYS)
def test_sources_that_are_not_there(case: str, folders: list[Path], tmp_path: Path, program: Program) -> None:
    """Models, tokens and rows that the recipe names and nobody has, with the nearest name."""
    keys, kind, says = KEYS[case]
    file = write(tmp_path, folders, **keys(str(folders[0]), str(folders[1])))
    program.refuses("merge", file, "--out", tmp_path / "out", kind=kind, says=says)


def test_every_problem_in_one_list(folders: list[Path], tmp_path: Path, program: Program) -> None:
    """Several tokens that cannot be had are told together."""
    tokens = {CHAT[0]: {"source": str(folders[0])}, CHAT[1]: {"source": "nobody"}}
    file = write(tmp_path, folders, tokenizer={"source": "union", "tokens": tokens})
    outcome = program.refuses(
        "merge", file, "--out", tmp_path / "out", kind="tokenizer", says=["rows of tokens cannot be found"]
    )
    assert len(outcome.problems) == 2


def test_a_token_that_no_input_has_a_row_for(tmp_path: Path, program: Program) -> None:
    """A tokenizer with more tokens than its model has rows: refused, or settled by the recipe; others may have it."""
    tokens = tokenizer(added=CHAT)
    folders = [make(tmp_path / name, tokens, number, rows=len(tokens) - 1) for number, name in enumerate("ab")]
    file = write(tmp_path, folders, tokenizer_source="base")
    says = ["no input has a row for '<|im_end|>'", "{kind: zero}"]
    program.refuses("merge", file, "--out", tmp_path / "out", kind="tokenizer", says=says)
    keys = {"tokenizer": {"source": "base", "tokens": {CHAT[1]: {"source": {"kind": "zero"}}}}}
    said = program.does("merge", write(tmp_path, folders, **keys), "--out", tmp_path / "out")
    assert "as if it lacked them" in said.err
    assert not weights(tmp_path / "out")["lm_head.weight"][-1].any()


def test_a_head_that_cannot_lend_its_rows(folders: list[Path], tmp_path: Path, program: Program) -> None:
    """Told by the tensor, where a row is to come from a model that has no such tensor."""
    headless(folders[1])
    file = write(tmp_path, folders, tokenizer_source="union")
    out = ("--out", tmp_path / "out", "--missing", "first")
    program.refuses("merge", file, *out, kind="tokenizer", says=["lacks the tensor", "tensor lm_head.weight"])


def test_other_sizes_name_the_key_that_helps(folders: list[Path], tmp_path: Path, program: Program) -> None:
    """Without a tokenizer key, vocabularies of different sizes are refused as before, and the key is named."""
    out = ("--out", tmp_path / "out")
    says = ["vocabularies of different sizes", "tokenizer_source"]
    program.refuses("merge", write(tmp_path, folders), *out, kind="mismatch", says=says)
