"""Opening a checkpoint: a local folder or file becomes named tensors. Reads headers only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from stockpot import errors
from stockpot.checkpoint import _header, _hub, _pickle
from stockpot.checkpoint._files import FileIdentity, FilePool, View, identity, require_readable
from stockpot.checkpoint._header import TensorInfo

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
INDEX_SUFFIX = ".safetensors.index.json"
PICKLE_INDEX = "pytorch_model.bin.index.json"
_NO_ALIASES = ("format", "stockpot")
_OPTIMIZER_WORDS = ("optimizer", "scheduler", "rng_state", "training_args", "scaler", "random_states")


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors in files, opened by header.

    ``ref`` is what the user typed; ``tensors`` maps names to places, in file order; ``aliases`` maps further names of
    the same bytes to the name that is kept; ``notes`` says what was unwrapped.
    """

    ref: str
    root: Path
    files: tuple[FileIdentity, ...]
    tensors: Mapping[str, TensorInfo]
    aliases: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path | None:
        """The folder whose side files belong to the checkpoint, or None for a single file."""
        return self.root if self.root.is_dir() else None

    @property
    def is_pickle(self) -> bool:
        """Whether the weights lie in pickled files."""
        return bool(self.files) and Path(self.files[0].path).suffix in PICKLE_SUFFIXES

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @cached_property
    def pool(self) -> FilePool:
        """The descriptors through which it is read."""
        return FilePool([file.path for file in self.files])

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json`` of the folder, or an empty map."""
        if self.folder is None or not (self.folder / "config.json").is_file():
            return {}
        try:
            found = json.loads((self.folder / "config.json").read_text("utf-8"))
        except (ValueError, OSError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def file_of(self, name: str) -> str:
        """Path of the file that holds a tensor."""
        return self.files[self.tensors[name].file].path

    def read_into(self, info: TensorInfo, start: int, out: memoryview) -> None:
        """Fill ``out`` with bytes of a dense tensor, from its byte ``start`` on."""
        self.pool.read_into(info.file, info.offset + start, out)

    def view(self, info: TensorInfo, start: int, size: int) -> View | None:
        """Bytes of a dense tensor where the page cache holds them; None where they must be read."""
        return self.pool.view(info.file, info.offset + start, size)

    def drop_views(self, infos: Sequence[TensorInfo]) -> None:
        """Viewed tensors are not needed for now. What lies between those of one file goes with them, to come back."""
        ranges: dict[int, tuple[int, int]] = {}
        for info in infos:
            start, stop = ranges.get(info.file, (info.offset, 0))
            ranges[info.file] = min(start, info.offset), max(stop, info.offset + info.nbytes)
        for file, (start, stop) in ranges.items():
            self.pool.drop_view(file, start, stop - start)

    def close(self) -> None:
        """Close its files."""
        if "pool" in self.__dict__:
            self.pool.close()


def open_checkpoint(ref: str | Path) -> Checkpoint:
    """Open a folder, a ``.safetensors`` file, a pickled state dict, or a Hub id, by headers alone.

    An existing path wins; otherwise ``name/name[@revision]`` is a Hub id. In a folder: an index, then
    ``model.safetensors``, then a sole ``*.safetensors``, then the same with ``.bin``; otherwise an error lists what is
    there. Raises CheckpointError and its kinds. Cost: the headers.

    >>> import tempfile, torch, safetensors.torch, stockpot
    >>> folder = tempfile.mkdtemp()
    >>> safetensors.torch.save_file({"w": torch.zeros(2, 3)}, folder + "/model.safetensors")
    >>> stockpot.open_checkpoint(folder).tensors["w"].shape
    (2, 3)
    """
    typed = str(ref)
    path = local_path(typed)
    if not _exists(path):
        path = _hub.fetch(typed) if isinstance(ref, str) else _hub.not_there(typed)
    if path.is_dir():
        return _open_folder(typed, path)
    return _open_files(typed, path, [path])


def local_path(ref: str | Path) -> Path:
    """A reference as a path, ``~`` resolved where that can be done."""
    try:
        return Path(ref).expanduser()
    except RuntimeError:
        return Path(ref)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        raise errors.UnreadableError("the folder may not be read", file=str(path.parent)) from None
    except (OSError, ValueError):
        return False


def _open_folder(ref: str, folder: Path) -> Checkpoint:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except PermissionError:
        raise errors.UnreadableError("the folder may not be read", file=str(folder)) from None
    chosen = folder / _choose(names, folder)
    if chosen.name.endswith(".index.json"):
        return _open_indexed(ref, folder, chosen)
    return _open_files(ref, folder, [chosen])


def _sole(names: Sequence[str], folder: Path) -> str | None:
    if len(names) > 1:
        raise errors.NoWeightsError(
            "several checkpoints in one folder", file=str(folder), got=", ".join(names[:8]), remedy="name one file"
        )
    return names[0] if names else None


def _choose(names: Sequence[str], folder: Path) -> str:
    def weights(*suffixes: str) -> list[str]:
        return [
            n
            for n in names
            if n.endswith(suffixes)
            and not n.startswith((".", "stockpot_"))
            and not any(word in n for word in _OPTIMIZER_WORDS)
        ]

    for preferred, candidates in (
        ("model" + INDEX_SUFFIX, [name for name in names if name.endswith(INDEX_SUFFIX)]),
        ("model.safetensors", weights(".safetensors")),
        (PICKLE_INDEX, []),
        ("pytorch_model.bin", weights(*PICKLE_SUFFIXES)),
    ):
        found = preferred if preferred in names else _sole(candidates, folder)
        if found:
            return found
    raise errors.NoWeightsError(
        "no weights in this folder",
        file=str(folder),
        expected="model.safetensors, an index, *.safetensors or *.bin",
        got=", ".join(names[:8]) or "nothing",
    )


def _open_indexed(ref: str, folder: Path, index: Path) -> Checkpoint:
    weight_map = _read_index(index)
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        _check_shard_name(shard, folder, index)
    checkpoint = _open_files(ref, folder, [folder / shard for shard in shards])
    known = {**{name: name for name in checkpoint.tensors}, **checkpoint.aliases}
    places = {shard: str(folder / shard) for shard in shards}
    problems = []
    for name, shard in weight_map.items():
        if name not in known:
            problems.append(f"{name}: not in {shard}")
        elif checkpoint.file_of(known[name]) != places[shard]:
            problems.append(f"{name}: said to be in {shard}, found in {checkpoint.file_of(known[name])}")
    problems += [f"{name}: in a shard but not in the index" for name in known if name not in weight_map]
    if problems:
        raise errors.ShardIndexError(
            "the index and its shards disagree", file=str(index), got=f"{len(problems)} differences", problems=problems
        )
    return checkpoint


def _read_index(index: Path) -> dict[str, str]:
    require_readable(index)
    try:
        content = json.loads(index.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise errors.ShardIndexError(f"the index is not JSON ({error})", file=str(index)) from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise errors.ShardIndexError("the index has no weight_map of names to files", file=str(index))
    return weight_map


def _check_shard_name(shard: str, folder: Path, index: Path) -> None:
    """A shard must be a plain relative name inside the folder, reached through no symlinked folder."""
    pure = PurePosixPath(shard)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in shard or "\\" in shard:
        raise errors.ShardIndexError(
            "the index names a file outside its folder",
            file=str(index),
            expected="a plain relative name",
            got=repr(shard),
        )
    for depth in range(1, len(pure.parts)):
        if len(shard) < 4096 and folder.joinpath(*pure.parts[:depth]).is_symlink():
            raise errors.ShardIndexError("the index goes through a symlinked folder", file=str(index), got=repr(shard))
    if not _exists(folder / shard):
        raise errors.ShardIndexError(
            "the index names a file that is not there",
            file=str(index),
            got=repr(shard),
            remedy="copy or download the missing shard",
        )


def _open_files(ref: str, root: Path, paths: Sequence[Path]) -> Checkpoint:
    tensors: dict[str, TensorInfo] = {}
    aliases: dict[str, str] = {}
    metadata: dict[str, str] = {}
    notes: list[str] = []
    files: list[FileIdentity] = []
    for number, path in enumerate(paths):
        infos, more_aliases, file_metadata, unwrapped, digest = _open_file(path, number)
        files.append(identity(path, digest))
        metadata.update(file_metadata)
        aliases.update(more_aliases)
        notes += [f"{path.name}: {part}" for part in unwrapped]
        for info in infos:
            if info.name in tensors:
                raise errors.DuplicateNameError(
                    "two shards hold the same tensor",
                    tensor=info.name,
                    file=str(path),
                    got=files[tensors[info.name].file].path,
                )
            tensors[info.name] = info
    aliases.update(
        {a: kept for a, kept in metadata.items() if kept in tensors and a not in tensors and a not in _NO_ALIASES}
    )
    return Checkpoint(ref, root, tuple(files), tensors, aliases, metadata, tuple(notes))


def _open_file(
    path: Path, number: int
) -> tuple[Sequence[TensorInfo], Mapping[str, str], Mapping[str, str], Sequence[str], str]:
    size = require_readable(path)
    if path.suffix in PICKLE_SUFFIXES:
        found = _pickle.read_state_dict(path, number)
        digest = xxhash.xxh3_128_hexdigest(repr(found).encode())
        return found.tensors, found.aliases, {}, found.unwrapped, digest
    if path.suffix != ".safetensors":
        raise errors.CheckpointError(
            "not a checkpoint", file=str(path), expected=f".safetensors, {', '.join(PICKLE_SUFFIXES)} or a folder"
        )
    with path.open("rb") as handle:
        n = _header.length(handle.read(8), size, str(path))
        text = handle.read(n)
    infos, metadata = _header.parse(text, size - 8 - n, str(path), number)
    return infos, {}, metadata, (), xxhash.xxh3_128_hexdigest(text)


def is_weight_file(name: str) -> bool:
    """Whether a file name is that of weights or of their index, in any form that we know."""
    lowered = name.lower()
    return lowered.endswith((".safetensors", *PICKLE_SUFFIXES, ".h5", ".msgpack", ".onnx", ".gguf", ".distcp")) or bool(
        re.search(r"\.(safetensors|bin)\.index(\..*)?\.json$", lowered)
    )
