"""Opening a checkpoint: a local folder or file becomes named tensors. Reads headers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from stockpot import errors
from stockpot.checkpoint import _hub
from stockpot.checkpoint._dcp import metadata_folder, open_distributed
from stockpot.checkpoint._files import FileIdentity, FilePool, View, identity, require_readable
from stockpot.checkpoint._folder import ADAPTER_CONFIG, Contents, read_config, read_files, read_folder
from stockpot.checkpoint._header import TensorInfo
from stockpot.checkpoint._source import DEFAULT_STEM, Part, Source

if TYPE_CHECKING:
    from stockpot.checkpoint._hub_folder import HubFolder, RangePool


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors in files on this machine or on a model hub, opened by header.

    ``ref`` is what the user typed; ``tensors`` maps names to places, in file order; ``aliases`` maps further names of
    the same bytes to the name that is kept; ``parts`` are its folders of weights; ``notes`` says what was unwrapped;
    ``hub`` is the model that a Hub id means; ``is_remote``, whether some of its weights are there only: reading
    them then takes a request for each range.
    """

    ref: str
    root: Path
    files: tuple[FileIdentity, ...]
    tensors: Mapping[str, TensorInfo]
    aliases: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[Part, ...] = (Part(),)
    notes: tuple[str, ...] = ()
    is_pickle: bool = False
    hub: HubFolder | None = field(default=None, repr=False, compare=False)
    is_remote: bool = False

    @property
    def folder(self) -> Path | None:
        """The folder whose side files belong to the checkpoint (of a hub's, as far as they are here), or None."""
        return self.root if self.root.is_dir() else None

    @property
    def roots(self) -> tuple[Path, ...]:
        """Its folder or file; none while it is on a hub."""
        return () if self.is_remote else (self.root,)

    @property
    def commit(self) -> str:
        """Of a Hub id, the commit that was opened; else nothing."""
        return self.hub.repository.commit if self.hub is not None else ""

    @property
    def metadata(self) -> Mapping[str, str]:
        """``__metadata__`` of the files of its first part."""
        return self.parts[0].metadata

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @cached_property
    def pool(self) -> FilePool | RangePool:
        """The descriptors, or the requests, through which it is read."""
        if self.hub is not None and self.is_remote:
            return self.hub.ranges(self.hub.weights)
        return FilePool([file.path for file in self.files])

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

    @property
    def working_bytes(self) -> int:
        """Bytes are read where they are."""
        return 0

    def close(self) -> None:
        """Close its files."""
        if "pool" in self.__dict__:
            self.pool.close()

    def downloads(self, *, side_files: bool) -> dict[str, int]:
        """What ``fetched`` would download; nothing for what is on this machine."""
        return {self.ref: self.hub.missing_bytes(side_files=side_files)} if self.hub is not None else {}

    def fetched(self, *, side_files: bool = True) -> Checkpoint:
        """The same tensors on this machine, and with ``side_files`` what a merge would copy beside them.

        Raises InputChangedError where the files are not those whose headers were read.
        """
        if self.hub is None:
            return self
        self.hub.fetch(side_files=side_files)
        if not self.is_remote:
            return self
        found = read_folder(_Disk(self.root))
        same = (found.tensors, found.aliases) == (self.tensors, self.aliases)
        if not same or [f.header_digest for f in found.files] != [f.header_digest for f in self.files]:
            raise errors.InputChangedError(
                "the files downloaded are not those whose headers were read", file=self.ref, remedy="run it again"
            )
        return replace(self, files=tuple(found.files), is_remote=False)


def open_checkpoint(ref: str | Path, *, commit: str = "") -> Source:
    """Open a folder, a ``.safetensors`` file, a pickled state dict, or a Hub id, by headers alone.

    An existing path wins; otherwise ``name/name[@revision]`` is a Hub id, opened at ``commit`` where one is given,
    whatever its revision means by now. A folder is one of ``torch.distributed.checkpoint``, or has weights of its own
    (an index, then ``model.safetensors``, then a sole ``*.safetensors``, then the same with ``.bin``; otherwise an
    error lists what is there), or subfolders with weights as diffusers and sentence-transformers write them. Raises
    CheckpointError and its kinds. Cost: the headers; of a Hub id those are read by range, and its small files are
    downloaded (``fetched`` downloads the weights).
    """
    typed = str(ref)
    path = local_path(typed)
    if commit or not _exists(path):
        return _open_from_hub(typed, commit) if isinstance(ref, str) else _hub.not_there(typed)
    if path.is_dir() and (inner := metadata_folder(path)):
        return open_distributed(typed, path, inner, read_config(_Disk(path), ""))
    return open_local(typed, path)


def open_local(ref: str, path: Path) -> Checkpoint:
    """Open a folder of safetensors or pickled files, or one such file."""
    if path.is_dir():
        return _checkpoint(ref, path, read_folder(_Disk(path)))
    contents = Contents()
    read_files(_Disk(path.parent), contents, "", [path.name])
    contents.parts[0] = replace(contents.parts[0], stem=DEFAULT_STEM, config={})
    return _checkpoint(ref, path, contents)


def _open_from_hub(ref: str, commit: str) -> Checkpoint:
    from stockpot.checkpoint._hub_folder import HubFolder  # who merges files does not wait for it

    repository = _hub.find(ref, commit)
    place = HubFolder(repository)
    found = read_folder(place)
    if ADAPTER_CONFIG in repository.entries:
        place.download([ADAPTER_CONFIG])
    found.notes[:0] = repository.notes
    return replace(_checkpoint(ref, repository.snapshot, found), hub=place, is_remote=not place.is_local)


def _checkpoint(ref: str, root: Path, found: Contents) -> Checkpoint:
    return Checkpoint(
        ref,
        root,
        tuple(found.files),
        found.tensors,
        found.aliases,
        tuple(found.parts),
        tuple(found.notes),
        found.is_pickle,
    )


@dataclass(frozen=True)
class _Disk:
    """A folder on this machine."""

    root: Path

    def names(self, folder: str) -> list[str]:
        place = self.root / folder
        if folder and place.is_symlink():
            raise errors.CheckpointError(
                "a symlinked folder inside a checkpoint", file=str(place), remedy="put the folder itself there"
            )
        try:
            return sorted(entry.name + "/" * entry.is_dir() for entry in place.iterdir())
        except PermissionError:
            raise errors.UnreadableError("the folder may not be read", file=str(place)) from None

    def open(self, name: str) -> BinaryIO:
        path = self.root / name
        require_readable(path)
        return path.open("rb")

    def identity(self, name: str, header_digest: str) -> FileIdentity:
        return identity(self.root / name, header_digest)

    def label(self, name: str) -> str:
        return str(self.root / name)

    def require(self, name: str, index: str) -> None:
        label, parts = self.label(index), Path(name).parts
        for depth in range(1, len(parts)):
            if len(name) < 4096 and self.root.joinpath(*parts[:depth]).is_symlink():
                raise errors.ShardIndexError("the index goes through a symlinked folder", file=label, got=repr(name))
        if not _exists(self.root / name):
            raise errors.ShardIndexError(
                "the index names a file that is not there",
                file=label,
                got=repr(name),
                remedy="copy or download the missing shard",
            )


def is_local(ref: str | Path) -> bool:
    """Whether a reference is a path of something that is there."""
    return _exists(local_path(ref))


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
