"""ImageNet and its shifted test sets, as they lie on disk when they have been unpacked.

Which logits count: all 1000 for ImageNet, V2 and Sketch; of R and A the 200 classes whose folders are there; of
ObjectNet the classes that its own mapping gives (``_objectnet``). References: Russakovsky et al., arXiv 1409.0575;
Recht et al. (V2), 1902.10811; Wang et al. (Sketch), 1905.13549; Hendrycks et al. (R), 2006.16241, and (A), 1907.07174.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import xxhash

from stockpot import errors
from stockpot.evaluate import IMAGE_ENDINGS

CLASSES = 1000
WNID = re.compile(r"n\d{8}")
EXPECTED = {"ImageNet": 50_000, "V2": 10_000, "Sketch": 50_889, "R": 30_000, "ObjectNet": 18_574, "A": 7_500,
            "held out": 26_000}  # fmt: skip
"""Images of each set (of ObjectNet: of the classes that it shares with ImageNet; held out: 26 of each class)."""
IMAGENET = "ImageNet"
SHIFTS = ("V2", "Sketch", "R", "ObjectNet", "A")
"""In the order of the papers' tables."""
SUBSET = 200
"""Classes of R and of A."""


@dataclass(frozen=True)
class ImageSet:
    """Images and how to judge an answer to them.

    ``labels``: for each file a place in ``groups``; ``groups``: for each class of the set the ImageNet classes that
    mean it: its logit is the greatest of theirs. ``border``: pixels to cut off all around, before all else.
    """

    name: str
    folder: Path
    files: tuple[Path, ...] = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    groups: tuple[tuple[int, ...], ...] = field(repr=False)
    border: int = 0
    notes: tuple[str, ...] = ()

    def limited(self, limit: int | None) -> ImageSet:
        """At most so many images, evenly from all classes, the same ones each time."""
        if limit is None or limit >= len(self.files):
            return self
        seen: dict[int, int] = {}
        turns = []
        for place, label in enumerate(self.labels):
            seen[label] = seen.get(label, 0) + 1
            turns.append((seen[label], place))
        kept = sorted(place for _, place in sorted(turns)[:limit])
        files, labels = tuple(self.files[place] for place in kept), tuple(self.labels[place] for place in kept)
        return replace(self, files=files, labels=labels)

    def digest(self) -> str:
        """Of names, sizes and times of change, labels and groups. Reading 30 GB to know them would cost more."""
        found = xxhash.xxh3_128()
        for path, label in zip(self.files, self.labels, strict=True):
            stat = path.stat()
            found.update(f"{path.relative_to(self.folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\0{label}\0".encode())
        found.update(json.dumps([self.groups, self.border]).encode())
        return str(found.hexdigest())


def load_imagenet(folder: Path, name: str = IMAGENET) -> tuple[ImageSet, tuple[str, ...]]:
    """The validation images (or held-out ones), and the wnids in class order: sorted, as everyone numbers them."""
    root = _root(
        folder, name, ("val_in_folder", "val", "train") if name != IMAGENET else ("val_in_folder", "val"), _wnids
    )
    wnids = sorted(_wnids(root))
    if len(wnids) != CLASSES:
        raise errors.InputError(
            f"{name} has another number of class folders", file=str(root),
            expected=f"{CLASSES} named n01440764 and so on", got=len(wnids),
            remedy="unpack it into one folder for each class",
        )  # fmt: skip
    return image_set(name, root, {wnid: number for number, wnid in enumerate(wnids)}, _each(range(CLASSES))), tuple(
        wnids
    )


def load_v2(folder: Path) -> ImageSet:
    """Folders 0 to 999 are the class numbers, as integers: sorted as words they would be others."""
    root = _root(folder, "V2", ("imagenetv2-matched-frequency-format-val", "val"), _numbers)
    names = _numbers(root)
    found = {name: int(name) for name in names}
    if sorted(found.values()) != list(range(CLASSES)):
        missing = sorted(set(range(CLASSES)) - set(found.values()))
        raise errors.InputError(
            "V2 does not have the class folders 0 to 999, each once", file=str(root), expected=f"{CLASSES} folders",
            got=f"{len(names)} folders" + (f", without {_some(missing)}" if missing else ""),
        )  # fmt: skip
    return image_set("V2", root, found, _each(range(CLASSES)))


def load_sketch(folder: Path, wnids: Sequence[str]) -> ImageSet:
    """All 1000 classes by wnid."""
    root = _root(folder, "Sketch", ("sketch", "val"), _wnids)
    return image_set("Sketch", root, _known("Sketch", root, wnids, CLASSES), _each(range(CLASSES)))


def load_subset(folder: Path, name: str, wnids: Sequence[str]) -> ImageSet:
    """R or A: 200 classes by wnid, and answers among these alone."""
    root = _root(folder, name, (f"imagenet-{name.lower()}",), _wnids)
    known = _known(name, root, wnids, SUBSET)
    numbers = sorted(known.values())
    return image_set(name, root, {wnid: numbers.index(number) for wnid, number in known.items()}, _each(numbers))


def _known(name: str, root: Path, wnids: Sequence[str], count: int) -> dict[str, int]:
    """Wnid -> class number of the folders, all known and as many as the set has."""
    own, places = _wnids(root), {wnid: number for number, wnid in enumerate(wnids)}
    strange = sorted(set(own) - set(places))
    if strange:
        raise errors.InputError(
            f"{name} has folders of classes that ImageNet does not have", file=str(root),
            expected="the wnids of the folder given as --imagenet", got=_some(strange),
        )  # fmt: skip
    if len(own) != count:
        lacking = sorted(set(places) - set(own)) if count == CLASSES else []
        raise errors.InputError(
            f"{name} has another number of class folders", file=str(root), expected=count,
            got=f"{len(own)}" + (f", without {_some(lacking)}" if lacking else ""), remedy="unpack it again",
        )  # fmt: skip
    return {wnid: places[wnid] for wnid in own}


def _root(folder: Path, name: str, inside: Sequence[str], found: Callable[[Path], Sequence[str]]) -> Path:
    """Where the class folders are: there, or in one of the usual folders inside."""
    if not folder.is_dir():
        raise errors.NotFoundError(f"there is no such folder for {name}", file=str(folder))
    for root in (folder, *(folder / one for one in inside)):
        if root.is_dir() and found(root):
            return root
    raise errors.InputError(
        f"{name} has no class folders", file=str(folder),
        got=_some(sorted(one.name for one in folder.iterdir())) or "nothing",
        expected="0 to 999" if name == "V2" else "n01440764 and so on, here or in " + " or ".join(inside),
    )  # fmt: skip


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _wnids(root: Path) -> list[str]:
    return [name for name in _folders(root) if WNID.fullmatch(name)]


def _numbers(root: Path) -> list[str]:
    return [name for name in _folders(root) if name.isascii() and name.isdecimal()]


def _each(numbers: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    return tuple((number,) for number in numbers)


def image_set(
    name: str, root: Path, labels: Mapping[str, int], groups: tuple[tuple[int, ...], ...], border: int = 0
) -> ImageSet:
    """The images of class folders; InputError where one has none, a note where there are more or fewer than known."""
    files, numbers, empty = [], [], []
    for own in sorted(labels):
        inside = _images(root / own)
        files += inside
        numbers += [labels[own]] * len(inside)
        if not inside:
            empty.append(own)
    if empty:
        raise errors.InputError(
            f"{name} has classes without an image", file=str(root), expected="images in every class folder",
            got=_some(empty),
        )  # fmt: skip
    expected = EXPECTED[name]
    notes = () if len(files) == expected else (f"{name} has {len(files):,} images here, {expected:,} as published",)
    return ImageSet(name, root, tuple(files), tuple(numbers), groups, border, notes)


def _images(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    return [folder / name for name in names if name.lower().endswith(IMAGE_ENDINGS)]


def _some(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
