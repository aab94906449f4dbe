"""Checkpoints in the other forms in which people keep them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import _oracle
from ._plain import LONE_FORMS, shared
from ._zoo import Family, save

OTHER_SHARDS = ("1MB", "7KB", "11KB", "40KB")


def _side_files(like: Path, folder: Path) -> Path:
    folder.mkdir()
    for entry in like.iterdir():
        if not entry.name.startswith("model"):
            shutil.copy(entry, folder)
    return folder


def _pickled_state(model: torch.nn.Module, like: Path) -> dict[str, torch.Tensor]:
    """What the library wrote; from memory, ties and all, where names there are the same."""
    own, written = model.state_dict(), _oracle.read(like)
    if not written.keys() <= own.keys():
        return written
    tied = {name for names in shared(own) if names & written.keys() for name in names}
    return {name: tensor for name, tensor in own.items() if name in written or name in tied}


def pickled_folder(model: torch.nn.Module, like: Path, folder: Path) -> Path:
    """A folder as older libraries wrote it: ``config.json`` and ``pytorch_model.bin``."""
    _side_files(like, folder)
    torch.save(_pickled_state(model, like), folder / "pytorch_model.bin")
    return folder


def pickled_shards(model: torch.nn.Module, like: Path, folder: Path) -> Path:
    """The same in two shards with their index."""
    _side_files(like, folder)
    state = _pickled_state(model, like)
    names = list(state)
    half = len(names) // 2
    weight_map = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), "utf-8")
    return folder


@dataclass(frozen=True)
class Written:
    """A base and its fine-tunes on disk in one form, and what the merge of them is to be called."""

    base: Path
    models: tuple[Path, ...]
    out: str


Families = Callable[..., Family]
Writer = Callable[[Families, str, Path], Written]


def _folders(write: Callable[[torch.nn.Module, Path, Path], Path]) -> Writer:
    def written(families: Families, name: str, root: Path) -> Written:
        family = families(name)
        pairs = zip((family.base, *family.models), (family.base_folder, *family.folders), strict=True)
        base, *models = (write(model, like, root / f"in{n}") for n, (model, like) in enumerate(pairs))
        return Written(base, tuple(models), "out")

    return written


def _files(form: str) -> Writer:
    write, suffix, out_suffix = LONE_FORMS[form]

    def written(families: Families, name: str, root: Path) -> Written:
        family = families(name)
        files = []
        for number, model in enumerate((family.base, *family.models)):
            files.append(root / f"in{number}{suffix}")
            write(model, files[-1])
        return Written(files[0], tuple(files[1:]), f"OUT{out_suffix}")

    return written


def _other_shards(families: Families, name: str, root: Path) -> Written:
    family = families(name)
    base, *models = (
        save(model, root / f"in{number}", torch.float32, shard)
        for number, (model, shard) in enumerate(zip((family.base, *family.models), OTHER_SHARDS, strict=True))
    )
    return Written(base, tuple(models), "out")


def _narrow_base(families: Families, name: str, root: Path) -> Written:
    return Written(families(name, torch.bfloat16).base_folder, families(name).folders, "out")


def _narrow_models(families: Families, name: str, root: Path) -> Written:
    return Written(families(name).base_folder, families(name, torch.bfloat16).folders, "out")


FORMS: dict[str, Writer] = {
    "bin": _folders(pickled_folder),
    "narrow-base": _narrow_base,
    **{form: _files(form) for form in LONE_FORMS},
    "bin-shards": _folders(pickled_shards),
    "other-shards": _other_shards,
    "narrow-models": _narrow_models,
}
