"""``stockpot bench clip`` as it is typed, on generated images and a tiny CLIP."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.lab import _clip_zoo as zoo

from ._kitchen import Program


@dataclass(frozen=True)
class Given:
    """What is there before the command."""

    base: Path
    models: tuple[Path, ...]
    sets: Path

    def words(self, *more: object) -> list[object]:
        """The shortest use."""
        imagenet = self.sets / "imagenet"
        return ["bench", "clip", *self.models[:2], "--base", self.base, "--imagenet", imagenet, "--limit", 30, *more]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Given]:
    """As the tests of the bench make it; on one thread, since tiny models gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("bench")
    family = zoo.save_family(root / "family", zoo.save_sets(root / "sets"))
    yield Given(family.base, family.tuned, root / "sets")
    torch.set_num_threads(threads)


def test_table_object_and_resumption(program: Program, given: Given, tmp_path: Path) -> None:
    """Rows and notes in words; one object; what is in OUT is not evaluated again."""
    out = tmp_path / "out"
    words = given.words("--v2", given.sets / "imagenetv2", "--out", out)
    first = program.does(*words)
    for text in (
        "zero-shot",
        "100.00",
        "model_0",
        "uniform soup",
        "WiSE-FT 0.5 of model_0.pt",
        "Model Stock of the first",
    ):
        assert text in first.out, text
    for note in (
        "at most 30 images",
        "V2 has 1,000 images here, 10,000 as published",
        "no greedy soup and no best single",
    ):
        assert f"note: {note}" in first.out, note
    assert "12 evaluations, 0 results known before" in first.err
    again = program.does(*words, "--json", "--quiet").data
    assert (again["command"], again["status"], again["evaluated"], again["known"]) == ("bench clip", "done", 0, 12)
    stored = json.loads((out / "results.json").read_text())
    assert stored["rows"] == again["rows"]
    assert [row["kind"] for row in again["rows"]] == [
        "zero_shot", "checkpoint", "checkpoint", "uniform", "wise_ft", "model_stock"
    ]  # fmt: skip
    assert again["rows"][0]["scores"] == {"ImageNet": 100.0, "V2": 100.0}


@pytest.mark.parametrize(
    ("more", "kind", "says"),
    [
        (["--a", "nowhere"], "not_found", ["there is no such folder for A", "nowhere"]),
        (["--v2", "sketch"], "input", ["V2 has no class folders", "expected 0 to 999"]),
        (["--also", "stock=x.pt"], "unknown_name", ["unknown published row 'stock'"]),
        (["--alphas", "many"], "parameter", ["--alphas cannot be read"]),
        (["--workers", "0"], "parameter", ["--workers must be at least 1"]),
        (["--base", "nowhere"], "not_found", ["nowhere"]),
        (["--precision", "int8", "--cache", "none"], "unknown_name", ["unknown precision 'int8'"]),
        (["--limit", "0"], "parameter", ["--limit"]),
    ],
)
def test_refusals(more: list[str], kind: str, says: list[str], program: Program, given: Given, tmp_path: Path) -> None:
    """One line and exit 2, and nothing written: not even OUT."""
    words = [str(given.sets / word) if word == "sketch" else word for word in more]
    program.refuses(*given.words("--out", tmp_path / "out", *words), kind=kind, says=says, command="bench")


def test_results_outlive_a_refusal(program: Program, given: Given, tmp_path: Path) -> None:
    """A corrupt image ends the run with its name; what was scored before is kept for the next one."""
    broken, out = tmp_path / "imagenet-a", tmp_path / "out"
    shutil.copytree(given.sets / "imagenet-a", broken)
    path = next(broken.rglob("*.jpg"))
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    words = [*given.words("--a", broken, "--out", out), "--limit", 200]
    assert "an image cannot be read" in program(*words).first
    path.write_bytes(whole)
    assert "1 result known before" in program.does(*words).err


def test_bench_alone_tells_what_there_is(program: Program) -> None:
    """The help of the group."""
    assert "clip" in program("bench", "--help").out
