"""The seam between the engine and what it reads from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from stockpot.checkpoint import _dtypes
from stockpot.checkpoint._files import FileIdentity, View
from stockpot.checkpoint._header import TensorInfo

DEFAULT_STEM = "model"
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Part:
    """A folder of weights in a checkpoint, with files, index and configuration of its own.

    ``folder`` is its path in the checkpoint, "" for the checkpoint's own; names of its tensors begin with ``prefix``.
    ``stem`` is what its weight files are called, ``metadata`` is the ``__metadata__`` in them.
    """

    folder: str = ""
    stem: str = DEFAULT_STEM
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """What its files do not say of a tensor's name."""
        return f"{self.folder}/" if self.folder else ""


class Named(Protocol):
    """What has the name of a tensor."""

    @property
    def name(self) -> str:
        """The name in the whole checkpoint."""


Thing = TypeVar("Thing", bound=Named)


def part_of(name: str, folders: Mapping[str, Part]) -> Part:
    """The part that a tensor belongs to, among parts by their folders: the one of the longest prefix.

    Raises KeyError where it belongs to none.
    """
    folder = name
    while folder := folder.rpartition("/")[0]:
        if folder in folders:
            return folders[folder]
    return folders[""]


def by_part(things: Iterable[Thing], parts: Sequence[Part]) -> list[tuple[Part, list[Thing]]]:
    """Each part with the tensors (or what is told of them) that belong to it, in order."""
    folders = {part.folder: part for part in parts}
    found: dict[str, list[Thing]] = {folder: [] for folder in folders}
    for thing in things:
        found[part_of(thing.name, folders).folder].append(thing)
    return [(part, found[part.folder]) for part in parts]


class Source(Protocol):
    """Named tensors that can be read by range: files on disk, or a state dict in memory."""

    @property
    def ref(self) -> str:
        """What the user calls it."""

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders and files on this machine that it is made of; none in memory."""

    @property
    def files(self) -> tuple[FileIdentity, ...]:
        """Its files; none in memory."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Places of the tensors, in order."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """Further names of the same bytes."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its folders of weights, at least one."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was unwrapped on the way."""

    @property
    def folder(self) -> Path | None:
        """Where its side files are."""

    @property
    def is_pickle(self) -> bool:
        """Whether it came from pickled files."""

    @property
    def commit(self) -> str:
        """On a model hub, the commit of it that was opened; else nothing."""

    def downloads(self, *, side_files: bool) -> Mapping[str, int]:
        """Bytes that ``fetched`` would download, by the reference of the checkpoint on a hub that they are of."""

    def fetched(self, *, side_files: bool = True) -> Source:
        """The same tensors on this machine; with ``side_files``, what a merge would copy beside them too."""

    def read_into(self, info: TensorInfo, start: int, out: memoryview) -> None:
        """Fill ``out`` with bytes of a tensor's range, from its byte ``start`` on."""

    def view(self, info: TensorInfo, start: int, size: int) -> View | None:
        """Bytes of a dense tensor where they are, without a copy; None where they must be read."""

    def close(self) -> None:
        """Close what is open; it is opened again where it is needed."""

    @property
    def working_bytes(self) -> int:
        """Memory that reading from it takes beside the reader's own."""

    def drop_views(self, infos: Sequence[TensorInfo]) -> None:
        """What was viewed of these tensors is not needed for now, and need not stay in this process's memory."""


def together(downloads: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Several downloads as one: a checkpoint that several need is downloaded once.

    >>> together([{"a/b": 5}, {"a/b": 7, "c/d": 1}])
    {'a/b': 7, 'c/d': 1}
    """
    found: dict[str, int] = {}
    for one in downloads:
        for ref, size in one.items():
            found[ref] = max(size, found.get(ref, 0))
    return found


class LastGathered(Generic[Key]):
    """The last strided tensor that was gathered, kept for all its pieces; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[Key, NDArray[np.uint8]] | None = None

    def get(self, key: Key, gather: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Its dense bytes, gathered if it is another than the last."""
        with self._lock:
            if self._kept is None or self._kept[0] != key:
                self._kept = None  # its memory is free before the next is taken
                self._kept = key, gather()
            return self._kept[1]


def read_dense(source: Source, info: TensorInfo) -> NDArray[np.uint8]:
    """All bytes of a tensor, row-major whatever its strides."""
    window = np.empty(info.nbytes, dtype=np.uint8)
    source.read_into(info, 0, window.data)
    return window if info.strides is None else gathered(window, info.dtype, info.shape, info.strides)


def gathered(window: NDArray[np.uint8], dtype: str, shape: Sequence[int], strides: Sequence[int]) -> NDArray[np.uint8]:
    """Elements that lie by strides in a window of a file, row-major."""
    item = _dtypes.itemsize(dtype)
    steps = [stride * item for stride in strides]
    shown = np.lib.stride_tricks.as_strided(window.view(f"V{item}"), shape, steps, writeable=False)
    return np.ascontiguousarray(shown).reshape(-1).view(np.uint8)
