"""``stockpot collect``: what it prints, writes and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.evaluate import _zoo as zoo

from ._kitchen import Program, check_error, snapshot


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A classifier with its tokenizer."""
    return zoo.bert(tmp_path / "bert")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two labelled texts."""
    return zoo.write_lines(
        tmp_path / "d.jsonl", [{"text": "a red thing", "label": "red"}, {"text": "blue", "label": "blue"}]
    )


@pytest.mark.parametrize("kind", ["fisher", "inputs"])
def test_collect(kind: str, model: Path, data: Path, tmp_path: Path, program: Program) -> None:
    """A file is written whole, beside it nothing, and the result is told as a sentence or as data."""
    out = tmp_path / "out.safetensors"
    said = program.does("collect", kind, model, "--data", data, "--out", out)
    assert f"{kind} of" in said.err
    assert said.out == ""
    assert not (tmp_path / "out.safetensors.partial").exists()
    told = program.does("collect", kind, model, "--data", data, "--out", out, "--overwrite", "--quiet", "--json")
    assert told.err == ""
    assert (told.data["kind"], told.data["examples"], told.data["out"]) == (kind, 2, str(out))
    assert told.data["bytes_written"] == out.stat().st_size
    assert bool(told.data["left_out"]) == (kind == "inputs")


def test_what_is_left_out_is_told(model: Path, data: Path, tmp_path: Path, program: Program) -> None:
    """Embeddings have no Gram matrix."""
    said = program.does("collect", "inputs", model, "--data", data, "--out", tmp_path / "o.safetensors")
    assert "left out (an embedding's): bert.embeddings" in said.err


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (("--out", "o.bin"), "output", ".safetensors"),
        (("--out", "bert/o.safetensors"), "output", "inside"),
        (("--out", "there.safetensors"), "output_exists", "exists"),
        (("--out", "there.safetensors", "--overwrite"), "output_exists", "not made by stockpot"),
        (("--data", "none.jsonl"), "not_found", "none.jsonl"),
        (("--data", "empty.jsonl"), "input", "empty"),
        (("--data", "odd.jsonl"), "input", "text"),
        (("--data", "unlabelled.jsonl", "--labels", "given"), "input", "label"),
        (("--labels", "true"), "unknown_name", "labels"),
        (("--samples", "0"), "parameter", "samples"),
        (("--labels", "exact", "--samples", "2"), "parameter", "draws none"),
        (("--seed", "-1"), "parameter", "seed"),
        (("--batch", "0"), "parameter", "batch"),
        (("--limit", "0"), "parameter", "limit"),
        (("--dtype", "int8"), "unknown_name", "int8"),
        (("--device", "cuda:99"), "usage", "device"),
    ],
)
def test_refusals(
    change: tuple[str, ...], kind: str, says: str, model: Path, data: Path, program: Program,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whatever cannot be is refused in one line, and nothing is written."""
    root = model.parent
    monkeypatch.chdir(root)
    (root / "there.safetensors").write_bytes(b"mine")
    (root / "empty.jsonl").write_text("", "utf-8")
    zoo.write_lines(root / "odd.jsonl", [{"words": "a"}])
    zoo.write_lines(root / "unlabelled.jsonl", [{"text": "a"}])
    given = {"--data": str(data), "--out": "o.safetensors"}
    extra = list(change)
    for name in given:
        if name in extra:
            place = extra.index(name)
            given[name] = extra[place + 1]
            del extra[place : place + 2]
    words = [word for pair in given.items() for word in pair]
    program.refuses("collect", "fisher", model, *words, *extra, kind=kind, says=[says], command="collect")


def test_models_that_nothing_is_collected_for(data: Path, tmp_path: Path, program: Program) -> None:
    """A model without a task, and a folder without a config, are told before anything is read."""
    folder = zoo.clip(tmp_path / "clip")
    out = tmp_path / "o.safetensors"
    program.refuses(
        "collect", "inputs", folder, "--data", data, "--out", out,
        kind="input", says=["this kind of model", "CLIPModel"], command="collect",
    )  # fmt: skip
    language = zoo.gpt(tmp_path / "gpt")
    program.refuses(
        "collect", "fisher", language, "--data", data, "--out", out, "--labels", "exact",
        kind="usage", says=["exact is for classifiers"], command="collect",
    )  # fmt: skip


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_interrupted_while_writing(
    fault: type[BaseException], model: Path, data: Path, tmp_path: Path, program: Program,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Nothing half is left, and an earlier file stays as it was."""
    from stockpot.checkpoint import Staging

    out = tmp_path / "out.safetensors"
    words = ("collect", "fisher", model, "--data", data, "--out", out, "--overwrite", "--quiet")
    program.does(*words)
    before = snapshot(tmp_path)
    written: Callable[..., None] = Staging.write

    def breaks(self: Staging, name: str, offset: int, content: memoryview) -> None:
        if offset > 10_000:
            raise fault("broken")
        written(self, name, offset, content)

    monkeypatch.setattr(Staging, "write", breaks)
    outcome = program(*words, "--seed", 5)
    assert outcome.code == (130 if fault is KeyboardInterrupt else 1)
    assert snapshot(tmp_path) == before


def test_it_is_no_output_of_a_merge(model: Path, data: Path, tmp_path: Path, program: Program) -> None:
    """``verify`` says so, and does not call it damaged."""
    out = tmp_path / "out.safetensors"
    program.does("collect", "fisher", model, "--data", data, "--out", out)
    check_error(program("verify", out), 2, ["not"])
    assert json.loads(program("verify", out, "--json").out)["error"]["kind"] == "not_an_output"
