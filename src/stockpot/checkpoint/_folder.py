"""What lies in a folder of weights: its parts, their files, what those files hold. Reads names and headers only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Protocol

import xxhash

from stockpot import errors
from stockpot.checkpoint import _header, _pickle
from stockpot.checkpoint._files import FileIdentity, is_inside
from stockpot.checkpoint._header import TensorInfo
from stockpot.checkpoint._signatures import HEAD_BYTES, kind_of_file
from stockpot.checkpoint._source import DEFAULT_STEM, Part

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
KNOWN_STEMS = ("model", "open_clip_model", "diffusion_pytorch_model", "adapter_model")
"""What libraries call their weights; of several checkpoints in one folder these come first."""
CONFIG = "config.json"
ADAPTER_STEM, ADAPTER_CONFIG = "adapter_model", "adapter_config.json"
PIPELINE, MODULES = "model_index.json", "modules.json"
MANIFESTS = {PIPELINE: "diffusers", MODULES: "sentence-transformers"}
"""The files in which a library names the parts of a checkpoint."""
_INDEX = ".index.json"
_PICKLES = ("pytorch_model.bin", "diffusion_pytorch_model.bin", "open_clip_pytorch_model.bin", "adapter_model.bin")
_SAFE_STEMS = {"pytorch_model": "model", "open_clip_pytorch_model": "open_clip_model"}
"""What a library calls its pickled weights, and its safetensors, where these differ."""
_SHARD = re.compile(r"^(?P<stem>.+)-\d{5,}-of-\d{5,}\.(safetensors|bin)$")
_NO_ALIASES = {"format", *_header.OWN_KEYS}
TRAINING_WORDS = ("optimizer", "scheduler", "rng_state", "scaler", "random_states")
"""What files of training state are called."""


class Place(Protocol):
    """A folder that can be read: on disk, or behind a network. Names are relative, ``/`` between their components."""

    def names(self, folder: str) -> list[str]:
        """What lies in a folder of it, sorted; names of subfolders end with ``/``."""

    def open(self, name: str) -> BinaryIO:
        """A regular file, seekable; raises CheckpointError kinds."""

    def identity(self, name: str, header_digest: str) -> FileIdentity:
        """What tells that the file is still the one that was opened."""

    def label(self, name: str) -> str:
        """What messages call a file or folder."""

    def require(self, name: str, index: str) -> None:
        """A file that an index names is there, and lies behind no symlinked folder."""


@dataclass
class Contents:
    """What was found."""

    files: list[FileIdentity] = field(default_factory=list)
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_pickle: bool = False


def read_folder(place: Place) -> Contents:
    """Everything in a folder: its own weights, and those of its parts."""
    contents = Contents()
    for folder in _part_folders(place):
        chosen = _inside(folder, _choose(place, folder))
        if chosen.endswith(_INDEX):
            index = _read_index(place, chosen)
            read_files(place, contents, folder, sorted(set(index.values())), (chosen, index))
        else:
            read_files(place, contents, folder, [chosen])
    return contents


def read_files(
    place: Place,
    contents: Contents,
    folder: str,
    names: Sequence[str],
    index: tuple[str, Mapping[str, str]] | None = None,
) -> None:
    """Read the headers of one part's weight files into ``contents``; ``index``: its name, and tensor -> file."""
    metadata: dict[str, str] = {}
    tensors: dict[str, TensorInfo] = {}
    aliases: dict[str, str] = {}
    first = len(contents.files)
    for number, name in enumerate(names, first):
        try:
            with place.open(name) as handle:
                infos, own_aliases, own_metadata, unwrapped, digest = _read_file(handle, place.label(name), number)
        except errors.StockpotError:
            raise
        except OSError as error:
            raise errors.RunError(
                f"reading failed ({error.strerror})", file=place.label(name), remedy="check the disk"
            ) from error
        contents.files.append(place.identity(name, digest))
        contents.notes += [f"{name}: {said}" for said in unwrapped]
        metadata.update(own_metadata)
        aliases.update(own_aliases)
        for info in infos:
            if info.name in tensors:
                raise errors.DuplicateNameError(
                    "two shards hold the same tensor",
                    tensor=info.name,
                    file=place.label(name),
                    got=place.label(names[tensors[info.name].file - first]),
                )
            tensors[info.name] = info
    aliases.update(
        {a: kept for a, kept in metadata.items() if kept in tensors and a not in tensors and a not in _NO_ALIASES}
    )
    if index is not None:
        found = {name: names[info.file - first] for name, info in tensors.items()}
        found.update({alias: found[kept] for alias, kept in aliases.items()})
        _require_true(place, *index, found)
    part = Part(folder, _stem(names[0]), metadata, read_config(place, folder))
    if part.stem == ADAPTER_STEM and ADAPTER_CONFIG in place.names(folder):
        with place.open(stated := _inside(folder, ADAPTER_CONFIG)) as handle:  # it changes the weights as they do
            contents.files.append(place.identity(stated, xxhash.xxh3_128_hexdigest(handle.read())))
    contents.parts.append(part)
    contents.is_pickle |= names[0].endswith(PICKLE_SUFFIXES)
    contents.aliases.update({part.prefix + alias: part.prefix + kept for alias, kept in aliases.items()})
    for name, info in tensors.items():
        full = part.prefix + name
        _header.require_name(full, place.label(names[info.file - first]))
        if full in contents.tensors:
            raise errors.DuplicateNameError(
                "two parts hold the same tensor", tensor=full, file=place.label(names[info.file - first])
            )
        contents.tensors[full] = replace(info, name=full) if part.prefix else info


def _read_file(
    handle: BinaryIO, label: str, number: int
) -> tuple[Sequence[TensorInfo], Mapping[str, str], Mapping[str, str], Sequence[str], str]:
    """Tensors, aliases, metadata, what was unwrapped, and the digest of the header."""
    head = handle.read(HEAD_BYTES)
    handle.seek(0)
    if label.endswith(PICKLE_SUFFIXES):
        _require_other(head, label, ("a zip archive",), errors.PickleFormatError, "a state dict of torch.save")
        found = _pickle.read_state_dict(handle, label, number)
        return found.tensors, found.aliases, {}, found.unwrapped, xxhash.xxh3_128_hexdigest(repr(found).encode())
    if not label.endswith(".safetensors"):
        raise errors.CheckpointError(
            "not a checkpoint", file=label, expected=f".safetensors, {', '.join(PICKLE_SUFFIXES)} or a folder",
            got=kind_of_file(head),
        )  # fmt: skip
    if head[8:9] != b"{":
        _require_other(head, label, (), errors.HeaderSyntaxError, "a safetensors file")
    size = handle.seek(0, 2)
    handle.seek(0)
    n = _header.length(handle.read(8), size, label)
    text = handle.read(n)
    infos, metadata = _header.parse(text, size - 8 - n, label, number)
    return infos, {}, metadata, (), xxhash.xxh3_128_hexdigest(text)


def _require_other(
    head: bytes, label: str, allowed: Sequence[str], error: type[errors.CheckpointError], expected: str
) -> None:
    """Refuse a file that is by its first bytes of another kind than its name says."""
    kind = kind_of_file(head)
    if kind is not None and kind not in allowed:
        raise error("the file is not what its name says", file=label, expected=expected, got=kind)


def _inside(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _part_folders(place: Place) -> list[str]:
    """Folders that hold weights: those that a manifest names, else the folder itself, else its subfolders."""
    names = place.names("")
    subfolders = [name[:-1] for name in names if name.endswith("/") and not name.startswith((".", "checkpoint-"))]
    named = _named_parts(place, names)
    if named is not None:
        return [folder for folder in dict.fromkeys(named) if not folder or _weights(place, folder)]
    if _weights(place, "") or not subfolders:
        return [""]
    return [folder for folder in subfolders if _weights(place, folder)] or [""]


def _named_parts(place: Place, names: Sequence[str]) -> list[str] | None:
    """What a manifest names as parts; None without one."""
    if PIPELINE in names:
        content = _read_manifest(place, PIPELINE, dict)
        entries = content.items()
        return _folders(place, [key for key, value in entries if isinstance(value, list) and not key.startswith("_")])
    if MODULES in names:
        content = _read_manifest(place, MODULES, list)
        found = [entry.get("path") for entry in content if isinstance(entry, dict)]
        return _folders(place, [path for path in found if isinstance(path, str)])
    return None


def _read_manifest(place: Place, name: str, kind: type) -> Any:
    """What names the parts; raises CheckpointError where it is not what its library writes."""
    content = _read_json(place, name)
    if not isinstance(content, kind) or not content:
        raise errors.CheckpointError(
            "the list of the checkpoint's parts cannot be read", file=place.label(name),
            expected=f"a JSON {kind.__name__}", remedy="copy or download it again",
        )  # fmt: skip
    return content


def _folders(place: Place, paths: Sequence[str]) -> list[str]:
    """Plain names of the folders that are there; one that leads elsewhere is refused."""
    found = []
    for path in paths:
        pure = PurePosixPath(path)
        if not is_inside(path):
            raise errors.ShardIndexError(
                "a part outside its checkpoint", file=place.label(""), expected="a plain relative name",
                got=repr(path)[:80],
            )  # fmt: skip
        folder = "/".join(pure.parts)
        above = ["/".join(pure.parts[:depth]) for depth in range(len(pure.parts))]
        if all(f"{part}/" in place.names(parent) for parent, part in zip(above, pure.parts, strict=True)):
            found.append(folder)
    return found


def _weights(place: Place, folder: str) -> bool:
    return any(map(is_weights, place.names(folder)))


def is_weights(name: str) -> bool:
    """Whether a file name is that of weights that can be read, or of their index."""
    return (
        name.endswith((".safetensors", ".safetensors" + _INDEX, *PICKLE_SUFFIXES))
        and not name.startswith((".", "stockpot_"))
        and not any(word in name for word in (*TRAINING_WORDS, "training_args"))
    )


def _choose(place: Place, folder: str) -> str:
    """The file of weights, or the index, in a folder: index, safetensors, pickles; a library's own name first."""
    names = [name.rstrip("/") for name in place.names(folder)]
    usable = [name for name in names if is_weights(name)]
    indexes = [name for name in usable if name.endswith(_INDEX)]
    safetensors = [name for name in usable if name.endswith(".safetensors")]
    pickles = [name for name in usable if name.endswith(PICKLE_SUFFIXES)]
    for known, candidates in (
        ([f"{stem}.safetensors{_INDEX}" for stem in KNOWN_STEMS], indexes),
        ([f"{stem}.safetensors" for stem in KNOWN_STEMS], safetensors),
        ([f"{name}{_INDEX}" for name in _PICKLES], []),
        (_PICKLES, pickles),
    ):
        found = next((name for name in known if name in names), None) or _sole(candidates, place.label(folder))
        if found:
            return found
    raise errors.NoWeightsError(
        "no weights in this folder",
        file=place.label(folder),
        expected="model.safetensors, an index, *.safetensors or *.bin",
        got=", ".join(names[:8]) or "nothing",
    )


def _sole(names: Sequence[str], folder: str) -> str | None:
    if len(names) > 1:
        raise errors.NoWeightsError(
            "several checkpoints in one folder", file=folder, got=", ".join(names[:8]), remedy="name one file"
        )
    return names[0] if names else None


def _read_index(place: Place, index: str) -> dict[str, str]:
    """Tensor -> file of a shard index, names of files from the checkpoint's own folder on."""
    label = place.label(index)
    with place.open(index) as handle:
        try:
            content = json.loads(handle.read().decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise errors.ShardIndexError(f"the index is not JSON ({error})", file=label) from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise errors.ShardIndexError("the index has no weight_map of names to files", file=label)
    folder = index.rpartition("/")[0]
    for shard in sorted(set(weight_map.values())):
        if not is_inside(shard) or not PurePosixPath(shard).parts:
            raise errors.ShardIndexError(
                "the index names a file outside its folder", file=label, expected="a plain relative name",
                got=repr(shard),
            )  # fmt: skip
        place.require(_inside(folder, shard), index)
    return {name: _inside(folder, shard) for name, shard in weight_map.items()}


def _require_true(place: Place, index: str, stated: Mapping[str, str], found: Mapping[str, str]) -> None:
    """An index says of every tensor, and of nothing else, in which file it is."""
    problems = []
    for name, shard in stated.items():
        if name not in found:
            problems.append(f"{name}: not in {shard}")
        elif found[name] != shard:
            problems.append(f"{name}: said to be in {place.label(shard)}, found in {place.label(found[name])}")
    problems += [f"{name}: in a shard but not in the index" for name in found if name not in stated]
    if problems:
        raise errors.ShardIndexError(
            "the index and its shards disagree",
            file=place.label(index),
            got=f"{len(problems)} differences",
            problems=problems,
        )


def _read_json(place: Place, name: str) -> Any:
    """A JSON file's content; None where it has none that can be read."""
    try:
        with place.open(name) as handle:
            return json.loads(handle.read().decode("utf-8"))
    except (ValueError, OSError, RecursionError, errors.CheckpointError):
        return None


def read_config(place: Place, folder: str) -> dict[str, Any]:
    """The content of a folder's ``config.json``; empty where it has none that can be read."""
    if CONFIG not in place.names(folder):
        return {}
    found = _read_json(place, _inside(folder, CONFIG))
    return found if isinstance(found, dict) else {}


def _stem(name: str) -> str:
    """What a weight file is called, its shard's number left out; a pickle's own name only where a library knows it."""
    base = name.rpartition("/")[2]
    shard = _SHARD.match(base)
    stem = shard["stem"] if shard else base.rsplit(".", 1)[0]
    if not name.endswith(PICKLE_SUFFIXES):
        return stem
    stem = _SAFE_STEMS.get(stem, stem)
    return stem if stem in KNOWN_STEMS else DEFAULT_STEM
