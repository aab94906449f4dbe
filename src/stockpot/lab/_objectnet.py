"""ObjectNet's classes that are ImageNet's too, by the files that come with it.

Barbu et al., ObjectNet, NeurIPS 2019; judged as in Taori et al., arXiv 2007.00644: an answer is the object
class that has the greatest logit among its ImageNet classes, of the 113 classes that both have; the red
border of two pixels is cut off, since it is no part of the image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stockpot import errors
from stockpot.lab._imagenet import CLASSES, ImageSet, image_set

SHARED = 113
BORDER = 2
FOLDERS = "folder_to_objectnet_label.json"
SHARED_NAMES = "objectnet_to_imagenet_1k.json"
NUMBERS = "pytorch_to_imagenet_2012_id.json"
LABELS = "imagenet_to_label_2012_v2"
"""Line i: the label of the class that ImageNet 2012 itself gives the number i."""


def load_objectnet(folder: Path) -> ImageSet:
    """``objectnet-1.0`` or the folder around it: ``images/OBJECT/IMAGE`` and ``mappings``."""
    if not folder.is_dir():
        raise errors.NotFoundError("there is no such folder for ObjectNet", file=str(folder))
    inside = folder / "objectnet-1.0"
    root = inside if inside.is_dir() else folder
    images, mappings = root / "images", root / "mappings"
    for part in (images, mappings):
        if not part.is_dir():
            raise errors.InputError(
                f"ObjectNet has no folder {part.name}",
                file=str(root),
                expected="images and mappings, as it is unpacked",
            )
    classes = _classes(mappings)
    missing = sorted(name for name in classes if not (images / name).is_dir())
    if missing:
        raise errors.InputError(
            "ObjectNet lacks folders of classes", file=str(images), expected=f"all {len(classes)} of its mappings",
            got=f"none of {', '.join(missing[:5])}" + (f" and {len(missing) - 5} more" if len(missing) > 5 else ""),
        )  # fmt: skip
    names = sorted(classes)
    labels = {name: number for number, name in enumerate(names)}
    return image_set("ObjectNet", images, labels, tuple(classes[name] for name in names), BORDER)


def _classes(mappings: Path) -> dict[str, tuple[int, ...]]:
    """Folder -> its ImageNet classes, as PyTorch numbers them."""
    folders = {label: name for name, label in _map(mappings / FOLDERS).items()}
    by_own_number = {int(own): int(number) for number, own in _map(mappings / NUMBERS).items()}
    labels = _text(mappings / LABELS).splitlines()
    numbers = {label.strip(): by_own_number[own] for own, label in enumerate(labels) if own in by_own_number}
    found: dict[str, tuple[int, ...]] = {}
    for label, names in _map(mappings / SHARED_NAMES).items():
        own = [numbers.get(name.strip()) for name in str(names).split(";")]
        known = [number for number in own if number is not None]
        if label not in folders or len(known) != len(own):
            raise errors.InputError(
                "ObjectNet's mappings do not fit together", file=str(mappings / SHARED_NAMES), got=f"{label}: {names}",
                expected=f"a label of {FOLDERS}, and names of {LABELS}",
            )  # fmt: skip
        found[folders[label]] = tuple(sorted(known))
    given = sorted(number for own in found.values() for number in own)
    if len(found) != SHARED or len(set(given)) != len(given) or given[-1] >= CLASSES:
        raise errors.InputError(
            "ObjectNet's mappings are not the published ones", file=str(mappings),
            expected=f"{SHARED} classes that share no class of ImageNet", got=f"{len(found)} classes",
        )  # fmt: skip
    return found


def _map(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(_text(path))
    except ValueError as error:
        raise errors.InputError(f"the mapping cannot be read ({error})", file=str(path)) from None
    if not isinstance(found, dict):
        raise errors.InputError("the mapping cannot be read", file=str(path), expected="an object of names")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.NotFoundError(
            f"a mapping of ObjectNet cannot be read ({error})", file=str(path), remedy="unpack its mappings folder too"
        ) from None
