"""Layouts, class orders and subsets of ImageNet and its shifts, on generated folders of the real form."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stockpot import errors
from stockpot.lab import ClipData
from stockpot.lab._clip_evaluator import answered

from . import _clip_zoo as zoo


def test_orders_and_subsets(sets: zoo.Sets) -> None:
    """Wnids sorted; V2 by number, not by word; R and A among their own classes; ObjectNet by its mappings."""
    found, held_out = replace(sets.data, held_out=sets.root / "held-out").load(None)
    assert list(found) == ["ImageNet", "V2", "Sketch", "R", "ObjectNet", "A"]
    assert held_out is not None
    for images in (found["ImageNet"], found["Sketch"], held_out):
        assert [zoo.WNIDS.index(file.parent.name) for file in images.files] == list(images.labels)
    assert [int(file.parent.name) for file in found["V2"].files] == list(found["V2"].labels)
    for name, classes in (("R", zoo.R_CLASSES), ("A", zoo.A_CLASSES)):
        own = found[name]
        assert own.groups == tuple((number,) for number in classes)
        assert [own.groups[label][0] for label in own.labels] == [zoo.WNIDS.index(f.parent.name) for f in own.files]
    objects = found["ObjectNet"]
    assert objects.border == 2
    assert len(objects.groups) == 113
    for file, label in zip(objects.files, objects.labels, strict=True):
        assert objects.groups[label] == sets.objects[file.parent.name]
    assert found["R"].notes == ("R has 200 images here, 30,000 as published",)


def test_an_answer_is_the_best_of_the_classes_that_count() -> None:
    """Others are passed over, and of several classes of one object the greatest logit counts."""
    logits = torch.tensor([[9.0, 1.0, 2.0, 3.0, 0.0], [9.0, 5.0, 2.0, 3.0, 4.0]])
    assert answered(logits, [(1, 2), (3,), (4,)]).tolist() == [1, 0]
    assert answered(logits, [(0,), (1,), (2,), (3,), (4,)]).tolist() == [0, 0]
    with pytest.raises(errors.EvaluatorError, match="not finite"):
        answered(torch.tensor([[float("nan"), 1.0]]), [(0,), (1,)])


def test_a_limit_is_even_and_repeatable(sets: zoo.Sets) -> None:
    """From all classes alike; another limit or another file is another content."""
    found, _ = sets.data.load(None)
    images = found["ObjectNet"]
    some = images.limited(120)
    assert sorted(set(some.labels)) == list(range(113))
    assert some == images.limited(120)
    assert len(some.files) == 120
    assert some.digest() != images.digest()
    assert images.digest() == images.limited(10**6).digest()


def less(folder: Path) -> None:
    shutil.rmtree(next(folder.rglob("n0*")))


def empty(folder: Path) -> None:
    for file in sorted(folder.rglob("n0*"))[7].iterdir():
        file.unlink()


def renamed(folder: Path) -> None:
    own = sorted(folder.rglob("n0*"))[3]
    own.rename(own.parent / "n09999999")


def flat(folder: Path) -> None:
    shutil.rmtree(folder)
    (folder / "val").mkdir(parents=True)
    (folder / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")


def number_missing(folder: Path) -> None:
    shutil.rmtree(next(folder.rglob("17")))


def number_twice(folder: Path) -> None:
    own = next(folder.rglob("17"))
    own.rename(own.parent / "018")


def object_missing(folder: Path) -> None:
    shutil.rmtree(folder / "objectnet-1.0" / "images" / "object_005")


def mapping_missing(folder: Path) -> None:
    (folder / "objectnet-1.0" / "mappings" / "imagenet_to_label_2012_v2").unlink()


def mapping_strange(folder: Path) -> None:
    path = folder / "objectnet-1.0" / "mappings" / "objectnet_to_imagenet_1k.json"
    path.write_text(path.read_text().replace(", synonym", ", other name", 1))


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


DAMAGE: list[tuple[str, str, Callable[[Path], None], str]] = [
    ("imagenet", "imagenet", less, r"ImageNet has another number of class folders.*expected 1000.*got 999"),
    ("imagenet", "imagenet", flat, r"ImageNet has no class folders.*expected n01440764.*got val"),
    ("imagenet", "imagenet", empty, r"ImageNet has classes without an image.*got n0\d{7}$"),
    ("v2", "imagenetv2", number_missing, r"V2 does not have the class folders 0 to 999.*999 folders, without 17"),
    ("v2", "imagenetv2", number_twice, r"V2 does not have the class folders 0 to 999.*1000 folders, without 17"),
    ("sketch", "sketch", less, r"Sketch has another number of class folders.*got 999, without n0\d{7}"),
    ("sketch", "sketch", renamed, r"Sketch has folders of classes that ImageNet does not have.*got n09999999"),
    ("r", "imagenet-r", less, r"R has another number of class folders.*expected 200, got 199"),
    ("r", "imagenet-r", renamed, r"R has folders of classes that ImageNet does not have"),
    ("a", "imagenet-a", empty, r"A has classes without an image"),
    ("a", "imagenet-a", gone, r"there is no such folder for A"),
    ("objectnet", "objectnet", object_missing, r"ObjectNet lacks folders of classes.*none of object_005"),
    ("objectnet", "objectnet", mapping_missing, r"a mapping of ObjectNet cannot be read.*imagenet_to_label_2012_v2"),
    ("objectnet", "objectnet", mapping_strange, r"mappings do not fit together.*other name"),
]


@pytest.mark.parametrize(("option", "folder", "damage", "says"), DAMAGE, ids=lambda one: getattr(one, "__name__", None))
def test_damage_is_told_apart(
    option: str, folder: str, damage: Callable[[Path], None], says: str, sets: zoo.Sets, tmp_path: Path
) -> None:
    """Before anything is evaluated, with the folder and what is wrong with it."""
    broken = tmp_path / folder
    shutil.copytree(sets.root / folder, broken, copy_function=shutil.copy)
    damage(broken)
    given = {"imagenet": sets.root / "imagenet", option: broken}
    with pytest.raises(errors.InputError, match=says):
        ClipData(**given).load(None)


def test_v2_in_words(sets: zoo.Sets) -> None:
    """Folders by wnid are another data set's layout."""
    with pytest.raises(errors.InputError, match=r"V2 has no class folders.*expected 0 to 999"):
        ClipData(sets.root / "imagenet", v2=sets.root / "sketch").load(None)
