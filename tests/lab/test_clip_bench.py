"""The whole bench on a tiny CLIP and generated images in the real layouts."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import stockpot
from stockpot import errors
from stockpot.evaluate import Options, Scores
from stockpot.lab import ClipRow, ClipTable, ClipWords, clip_bench, clip_summary, clip_table
from stockpot.lab._clip_evaluator import ClipEvaluator
from stockpot.lab._clip_names import from_transformers
from stockpot.lab._published import MEAN, ROWS, published
from stockpot.soups import Running

from . import _clip_zoo as zoo

LIMIT = 150


@pytest.fixture(scope="module")
def table(sets: zoo.Sets, family: zoo.Family, tmp_path_factory: pytest.TempPathFactory) -> ClipTable:
    """Three fine-tunes and one more, every set, a held-out set; results are kept in memory."""
    data = replace(sets.data, held_out=sets.root / "held-out")
    running = Running(options=Options(limit=LIMIT))
    return clip_bench(
        [str(path) for path in family.tuned], str(family.base), data, also=[f"stock-during={family.tuned[0]}"],
        alphas=(0.0, 0.5, 1.0), running=running,
    )  # fmt: skip


def row(table: ClipTable, label: str) -> ClipRow:
    """By the beginning of its label."""
    return next(one for one in table.rows if one.label.startswith(label))


def test_rows(table: ClipTable) -> None:
    """Base, checkpoints, others, soups, WiSE-FT, Model Stock; every set, and the mean of the shifts."""
    assert [one.kind for one in table.rows] == [
        "zero_shot", "checkpoint", "checkpoint", "checkpoint", "also", "uniform", "greedy", "wise_ft", "wise_ft",
        "wise_ft", "model_stock", "model_stock",
    ]  # fmt: skip
    assert table.sets == ("ImageNet", "V2", "Sketch", "R", "ObjectNet", "A")
    for one in table.rows:
        assert tuple(one.scores) == (*table.sets, MEAN)
        assert one.scores[MEAN] == pytest.approx(sum(one.scores[name] for name in table.sets[1:]) / 5)
    assert table.images == dict.fromkeys(table.sets, LIMIT) | {"ObjectNet": 125}


def test_every_label_is_right(table: ClipTable) -> None:
    """The base knows every image: an order, a subset, a mapping or a border that is wrong would show in its set."""
    assert row(table, "zero-shot").scores == dict.fromkeys((*table.sets, MEAN), 100.0)
    assert 2 < row(table, "model_2").scores["ImageNet"] < 98


def test_accuracies_by_hand(table: ClipTable, sets: zoo.Sets, family: zoo.Family) -> None:
    """Of a checkpoint on A: the definition's forward pass, argmax among A's classes."""
    found, _ = sets.data.load(LIMIT)
    for name in ("ImageNet", "A"):
        images = found[name]
        own = family.tuned_weights[2]
        pixels = torch.stack([zoo.seen(file) for file in images.files])
        features = zoo.forward(from_transformers(own, "open_clip"), pixels, heads=2)
        logits = features / features.norm(dim=1, keepdim=True) @ own["classification_head.weight"].double().T
        logits = logits + own["classification_head.bias"].double()
        classes = torch.tensor([group[0] for group in images.groups])
        right = (classes[logits[:, classes].argmax(1)] == classes[torch.tensor(images.labels)]).double().mean()
        assert row(table, "model_2").scores[name] == pytest.approx(100 * right.item(), abs=0.01)


def test_mixtures_are_those_of_merge(table: ClipTable, sets: zoo.Sets, family: zoo.Family, tmp_path: Path) -> None:
    """WiSE-FT's ends are the models; merged files score as the bench's rows do."""
    assert row(table, "WiSE-FT 0 ").scores == row(table, "zero-shot").scores
    assert row(table, "WiSE-FT 1 ").scores == row(table, "model_0").scores == table.rows[4].scores
    base = zoo.save_wrapped(tmp_path / "base.pt", family.base_weights)
    models = [str(path) for path in family.tuned]
    stockpot.merge("model_stock", base=str(base), models=models, out=tmp_path / "stock.pt")
    stockpot.merge("model_stock", base=str(base), models=models[:2], out=tmp_path / "two.pt")
    stockpot.merge("linear", models=models, out=tmp_path / "mean.pt")
    merged = [str(tmp_path / f"{name}.pt") for name in ("stock", "two", "mean")]
    found = clip_bench(merged, str(family.base), sets.data, alphas=(), running=Running(options=Options(limit=LIMIT)))
    expected = [row(table, label).scores for label in ("Model Stock of all 3", "Model Stock of the first 2", "uniform")]
    assert [one.scores for one in found.rows[1:4]] == expected


def test_greedy_by_held_out_images(table: ClipTable) -> None:
    """Its held-out accuracy is that of the best single at least; the best single is marked."""
    singles = [one for one in table.rows if one.kind == "checkpoint"]
    best = max(singles, key=lambda one: one.held_out or 0.0)
    assert best.label.endswith("(best held out)")
    greedy = row(table, "greedy")
    assert greedy.held_out is not None
    assert best.held_out is not None
    assert greedy.held_out >= best.held_out
    assert set(greedy.members) <= {one.members[0] for one in singles}


@pytest.mark.parametrize("kind", ["folders", "headless"])
def test_other_forms(kind: str, sets: zoo.Sets, family: zoo.Family, tmp_path: Path) -> None:
    """Folders of transformers score as the same weights saved otherwise do; without a classifier, by texts."""
    data = replace(sets.data, v2=None, sketch=None, objectnet=None, a=None)
    running = Running(options=Options(limit=60))
    if kind == "folders":
        found = clip_bench([str(path) for path in family.folders], str(family.base), data, running=running)
        other = clip_bench([str(path) for path in family.tuned], str(family.base), data, running=running)
        assert [one.scores for one in found.rows[:6]] == [one.scores for one in other.rows[:6]]
        assert any("a ratio each" in note for note in found.notes)
        assert not any("a ratio each" in note for note in other.notes)
        return
    classes, templates = tmp_path / "classes.txt", tmp_path / "templates.txt"
    classes.write_text("\n".join(zoo.class_names()))
    templates.write_text("the {}")
    words = ClipWords(classes, templates)
    bare = [
        zoo.save_folder(tmp_path / str(seed), family.clip, zoo.moved(zoo.weights_of(family.clip), seed, 0.1))
        for seed in (1, 2)
    ]
    found = clip_bench([str(path) for path in bare], str(family.clip), data, words=words, running=running)
    assert [one.kind for one in found.rows] == [
        "zero_shot",
        "checkpoint",
        "checkpoint",
        "uniform",
        "wise_ft",
        "model_stock",
    ]
    assert MEAN not in found.rows[0].scores
    assert any("no mean of 5 without them: V2, Sketch, ObjectNet, A" in note for note in found.notes)


def test_killed_and_resumed(
    sets: zoo.Sets, family: zoo.Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is evaluated twice: not after a kill, not in a third run; and the numbers are those of a straight run."""
    data = replace(sets.data, sketch=None, r=None, objectnet=None, held_out=sets.root / "held-out")
    asked: list[str] = []
    evaluate = ClipEvaluator.evaluate

    def counted(self: ClipEvaluator, model: Any, folder: Path | None = None) -> Scores:
        if len(asked) == 13:
            asked.append("killed")
            raise KeyboardInterrupt
        asked.append(self.name)
        return evaluate(self, model, folder)

    monkeypatch.setattr(ClipEvaluator, "evaluate", counted)

    def run(cache: str) -> ClipTable:
        running = Running(tmp_path / cache, options=Options(limit=40))
        return clip_bench([str(path) for path in family.tuned], str(family.base), data, running=running)

    with pytest.raises(KeyboardInterrupt):
        run("one")
    found = run("one")
    total = found.evaluated + 13
    assert found.known == 13
    assert len(asked) == total + 1
    again = run("one")
    assert (again.evaluated, len(asked)) == (0, total + 1)
    asked[:] = [""] * 100
    straight = run("two")
    assert straight.evaluated == total
    assert straight.rows == found.rows == again.rows


def test_published_numbers_beside(table: ClipTable) -> None:
    """Where the model is one of the papers'; differences are ours less theirs; here none is shown, and that is said."""
    assert all(one.published is None for one in table.rows)
    assert any(note.startswith("no published numbers") for note in table.notes)
    ours = {"ImageNet": 80.0, "V2": 70.0, MEAN: 53.0}
    own = ClipRow("Model Stock of the first 2", "model_stock", ours, published("stock-after", "ViT-B/32"))
    assert own.differences == pytest.approx({"ImageNet": 0.33, "V2": 0.78, MEAN: 0.31})
    shown = ClipTable("ViT-B/32", ("ImageNet", "V2"), {"ImageNet": 50_000, "V2": 10_000}, (own,), ("a note",), 1, 0)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(clip_table(shown))
    text = console.export_text()
    for words in ("Model Stock of the first 2", "80.00", "79.67", "+0.33", "52.69", "difference"):
        assert words in text
    assert "47.18" not in text  # of a set that was not given
    assert clip_summary(shown)[1:] == ["published: Model Stock, arXiv 2403.19522", "note: a note"]


def test_published_rows_are_whole() -> None:
    """Means of the rows with all shifts are the means of their shifts; headlines have two numbers."""
    for own in ROWS:
        if len(own.values) == 7:
            shifts = [value for name, value in own.values.items() if name not in ("ImageNet", MEAN)]
            assert sum(shifts) / 5 == pytest.approx(own.values[MEAN], abs=0.0051)
    assert published("soup-greedy", "ViT-B/32") is not None
    assert published("soup-greedy", "ViT-B/16") is None


def refused(match: str, sets: zoo.Sets, checkpoints: list[Path], base: Path, **more: Any) -> None:
    """With these words, and before anything is evaluated."""
    with pytest.raises(errors.StockpotError, match=match):
        clip_bench([str(path) for path in checkpoints], str(base), sets.data, **more)


def test_refusals(sets: zoo.Sets, family: zoo.Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two forms, a strange key, another base, a base of too few tensors."""
    monkeypatch.setattr(ClipEvaluator, "evaluate", lambda *_: pytest.fail("nothing is to be evaluated"))
    refused("checkpoints of two forms cannot be mixed", sets, [family.tuned[0], family.folders[0]], family.base)
    refused(r"unknown published row 'stock-durin'; did you mean", sets, list(family.tuned), family.base,
            also=[f"stock-durin={family.tuned[0]}"])  # fmt: skip
    small: Mapping[str, torch.Tensor] = {
        name: own[:, :64] if name == "visual_projection.weight" else own for name, own in family.base_weights.items()
    }
    refused("visual.proj", sets, list(family.tuned), zoo.save_folder(tmp_path / "small", family.clip, small))


def test_a_corrupt_image_is_named(sets: zoo.Sets, family: zoo.Family, tmp_path: Path) -> None:
    """What was evaluated before stays known."""
    broken = tmp_path / "imagenet-a"
    shutil.copytree(sets.root / "imagenet-a", broken)
    path = next(broken.rglob("*.jpg"))
    path.write_bytes(path.read_bytes()[:300])
    data = replace(sets.data, v2=None, sketch=None, r=None, objectnet=None, a=broken)
    cache = tmp_path / "cache"
    with pytest.raises(errors.InputError, match=rf"an image cannot be read.*{path.name}"):
        clip_bench([str(family.tuned[0])], str(family.base), data, running=Running(cache))
    mended = replace(data, a=sets.root / "imagenet-a")
    assert clip_bench([str(family.tuned[0])], str(family.base), mended, running=Running(cache)).known == 1
