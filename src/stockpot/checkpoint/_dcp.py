"""Folders of ``torch.distributed.checkpoint``: each tensor in chunks, each chunk an archive of ``torch.save``.

Opening reads ``.metadata`` alone. A chunk's archive is looked into when its bytes are first asked for, and bytes are
then read from their place in it: no tensor is ever put together in memory.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from stockpot import errors
from stockpot.checkpoint import _dtypes
from stockpot.checkpoint._dcp_metadata import METADATA, Box, StatedChunk, StatedTensor, read_metadata
from stockpot.checkpoint._files import FileIdentity, FilePool, View, identity, require_readable
from stockpot.checkpoint._header import TensorInfo
from stockpot.checkpoint._pickle import PICKLE_CAP, PickledTensor, open_zip, unwrap
from stockpot.checkpoint._source import LastGathered, Part, gathered

INNER = "pytorch_model_fsdp_0"
"""Where accelerate puts the folder of the weights, inside the checkpoint's own."""
_NO_WEIGHTS = ("optim.", "optimizer.", "optimizers.", "scheduler.", "lr_scheduler.")
"""What names begin with where optimizer and schedule were saved flat, beside the weights."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A box of a tensor, and the archive that holds it: ``length`` bytes of a numbered file from ``offset`` on."""

    box: Box
    file: int
    offset: int
    length: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Its own sizes."""
        return tuple(end - begin for begin, end in self.box)

    @property
    def rows(self) -> tuple[int, int]:
        """(first, past the last) along the first axis; a number is one row."""
        return self.box[0] if self.box else (0, 1)


@dataclass(frozen=True, slots=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[_Chunk, ...]

    @property
    def is_by_rows(self) -> bool:
        """Whether each chunk is a run of whole rows, so that its bytes are a run of the tensor's."""
        return all(chunk.shape[1:] == self.shape[1:] for chunk in self.chunks)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * _dtypes.itemsize(self.dtype)


@dataclass(frozen=True)
class DistributedCheckpoint:
    """What ``torch.distributed.checkpoint`` saved, as a source; optimizer and training state left out."""

    ref: str
    folder: Path
    files: tuple[FileIdentity, ...]
    tensors: Mapping[str, TensorInfo]
    places: Mapping[str, _Tensor] = field(repr=False)
    notes: tuple[str, ...]
    parts: tuple[Part, ...]
    _payloads: dict[_Chunk, tuple[int, PickledTensor]] = field(default_factory=dict, repr=False)
    _gathered: LastGathered[_Chunk] = field(default_factory=LastGathered, repr=False)

    @property
    def aliases(self) -> Mapping[str, str]:
        """None: what was tied was saved twice."""
        return {}

    @property
    def is_pickle(self) -> bool:
        """Its weights are pickled, but in no form that we write."""
        return False

    @property
    def roots(self) -> tuple[Path, ...]:
        """Its folder."""
        return (self.folder,)

    @cached_property
    def pool(self) -> FilePool:
        """The descriptors through which it is read."""
        return FilePool([file.path for file in self.files])

    def read_into(self, info: TensorInfo, start: int, out: memoryview) -> None:
        """Fill ``out`` with bytes of a tensor, from its byte ``start`` on."""
        tensor = self.places[info.name]
        row, stop = tensor.row_bytes, start + len(out)
        for chunk in tensor.chunks if tensor.is_by_rows else ():
            place = chunk.rows[0] * row
            begin, end = max(start, place), min(stop, chunk.rows[1] * row)
            if begin < end:
                self._read(info, chunk, begin - place, out[begin - start : end - start])
        if not tensor.is_by_rows and len(out):
            first, last = start // row, -(-stop // row)
            out[:] = self._rows(info, tensor, first, last)[start - first * row : stop - first * row]

    def _rows(self, info: TensorInfo, tensor: _Tensor, first: int, last: int) -> memoryview:
        """Rows put together from chunks that hold parts of them."""
        item = _dtypes.itemsize(tensor.dtype)
        whole = np.empty((last - first, *tensor.shape[1:], item), np.uint8)
        for chunk in tensor.chunks:
            begin, end = max(chunk.rows[0], first), min(chunk.rows[1], last)
            if begin >= end:
                continue
            part = np.empty((end - begin, *chunk.shape[1:], item), np.uint8)
            flat = part.reshape(-1)
            self._read(info, chunk, (begin - chunk.rows[0]) * (flat.size // (end - begin)), flat.data)
            box = (slice(begin - first, end - first), *(slice(*side) for side in chunk.box[1:]))
            whole[box] = part
        return whole.reshape(-1).data

    def _read(self, info: TensorInfo, chunk: _Chunk, start: int, out: memoryview) -> None:
        """Bytes of a chunk as if it lay dense, from its byte ``start`` on."""
        begin, stored = self._payload(info, chunk)
        if stored.is_dense:
            self.pool.read_into(chunk.file, begin + start, out)
            return

        def gather() -> NDArray[np.uint8]:
            window = np.empty(stored.extent * _dtypes.itemsize(stored.dtype), np.uint8)
            self.pool.read_into(chunk.file, begin, window.data)
            return gathered(window, stored.dtype, stored.shape, stored.strides)

        out[:] = self._gathered.get(chunk, gather).data[start : start + len(out)]

    def _payload(self, info: TensorInfo, chunk: _Chunk) -> tuple[int, PickledTensor]:
        """Where a chunk's bytes begin in its file, and in what form they lie there; looked up once."""
        found = self._payloads.get(chunk)
        if found is None:
            found = self._payloads[chunk] = _payload(self.pool, self.files[chunk.file].path, chunk, info)
        return found

    def view(self, info: TensorInfo, start: int, size: int) -> View | None:
        """Bytes where the page cache holds them, if one chunk has them all."""
        tensor = self.places[info.name]
        for chunk in tensor.chunks if tensor.is_by_rows else ():
            first, last = (row * tensor.row_bytes for row in chunk.rows)
            if first <= start and start + size <= last:
                begin, stored = self._payload(info, chunk)
                return self.pool.view(chunk.file, begin + start - first, size) if stored.is_dense else None
        return None

    def drop_views(self, infos: Sequence[TensorInfo]) -> None:
        """Viewed tensors are not needed for now."""
        for info in infos:
            for chunk in self.places[info.name].chunks:
                self.pool.drop_view(chunk.file, chunk.offset, chunk.length)

    @property
    def commit(self) -> str:
        """It is on no hub."""
        return ""

    def downloads(self, *, side_files: bool) -> dict[str, int]:
        """Nothing."""
        return {}

    def fetched(self, *, side_files: bool = True) -> DistributedCheckpoint:
        """It is here."""
        return self

    @property
    def working_bytes(self) -> int:
        """Bytes are read where they are."""
        return 0

    def close(self) -> None:
        """Close its files."""
        if "pool" in self.__dict__:
            self.pool.close()


def metadata_folder(folder: Path) -> Path | None:
    """The folder of ``torch.distributed.checkpoint`` that this one is, or holds; None where it is none."""
    try:
        return next((place for place in (folder, folder / INNER) if (place / METADATA).is_file()), None)
    except PermissionError:  # whoever lists the folder says so
        return None


def open_distributed(ref: str, folder: Path, inner: Path, config: Mapping[str, Any]) -> DistributedCheckpoint:
    """Open ``inner`` by its ``.metadata``; ``folder``: where its side files and its configuration are."""
    path = inner / METADATA
    if require_readable(path) > PICKLE_CAP:
        raise errors.PickleFormatError("the metadata is absurdly large", file=str(path))
    data = path.read_bytes()
    stated = read_metadata(data, str(path))
    named = {name: tensor for name, tensor in stated.items() if not name.startswith(_NO_WEIGHTS)}
    flat, unwrapped = unwrap(_tree(named, str(path)), str(path), StatedTensor)
    notes = [f"{inner.name}: {said}" for said in unwrapped]
    if left := len(stated) - len(flat):
        notes.append(f"{inner.name}: {left} tensors that are no weights left out")
    digest = xxhash.xxh3_128_hexdigest(data)
    names = sorted({chunk.file for tensor in flat.values() for chunk in tensor.chunks})
    sizes = [require_readable(inner / name) for name in names]
    numbers = {name: number for number, name in enumerate(names, 1)}
    places = {}
    for name, tensor in flat.items():
        for chunk in tensor.chunks:
            if chunk.offset + chunk.length > sizes[numbers[chunk.file] - 1]:
                raise errors.TruncatedFileError(
                    "the file ends before the chunk does", tensor=name, file=str(inner / chunk.file),
                    expected=f"{chunk.offset + chunk.length} bytes", got=sizes[numbers[chunk.file] - 1],
                    remedy="copy or download it again",
                )  # fmt: skip
        places[name] = _Tensor(tensor.dtype, tensor.shape, tuple(_numbered(c, numbers) for c in tensor.chunks))
    files = (identity(path, digest), *(identity(inner / name, digest) for name in names))
    infos = {
        name: TensorInfo(name, t.dtype, t.shape, 0, 0, _dtypes.nbytes(t.dtype, t.shape)) for name, t in flat.items()
    }
    return DistributedCheckpoint(ref, folder, files, infos, places, tuple(notes), (Part(config=config),))


def _tree(named: Mapping[str, StatedTensor], label: str) -> dict[Any, Any]:
    """The state as it was saved: maps in maps, with tensors in them."""
    tree: dict[Any, Any] = {}
    for name, tensor in named.items():
        node: Any = tree
        for key in tensor.path[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise errors.PickleFormatError("a tensor inside a tensor", file=label, tensor=name)
        node[tensor.path[-1]] = tensor
    return tree


def _numbered(chunk: StatedChunk, numbers: Mapping[str, int]) -> _Chunk:
    return _Chunk(chunk.box, numbers[chunk.file], chunk.offset, chunk.length)


def _payload(pool: FilePool, path: str, chunk: _Chunk, info: TensorInfo) -> tuple[int, PickledTensor]:
    """Look into a chunk's archive: it must hold one tensor of the stated dtype and shape, inside its range."""
    root, ranges = open_zip(io.BufferedReader(_Window(pool, chunk)), path)
    found = root if isinstance(root, PickledTensor) else None
    if found is None or (found.dtype, found.shape) != (info.dtype, chunk.shape) or found.storage.key not in ranges:
        raise errors.PickleFormatError(
            "a chunk is not what the metadata says", tensor=info.name, file=path,
            expected=f"{info.dtype} {list(chunk.shape)}",
            got="no tensor" if found is None else f"{found.dtype} {list(found.shape)}",
        )  # fmt: skip
    begin, size = ranges[found.storage.key]
    item = _dtypes.itemsize(info.dtype)
    if (found.offset + found.extent) * item > size or begin + size > chunk.length:
        raise errors.OffsetError("the tensor lies outside its storage", tensor=info.name, file=path)
    return chunk.offset + begin + found.offset * item, found


class _Window(io.RawIOBase):
    """A chunk's archive, as a file."""

    def __init__(self, pool: FilePool, chunk: _Chunk) -> None:
        super().__init__()
        self._pool, self._chunk, self._place = pool, chunk, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._chunk.length}[whence]
        if start + offset < 0:
            raise OSError("a seek to before the start")
        self._place = start + offset
        return self._place

    def readinto(self, out: Any) -> int:
        size = min(len(out), max(self._chunk.length - self._place, 0))
        self._pool.read_into(self._chunk.file, self._chunk.offset + self._place, memoryview(out)[:size])
        self._place += size
        return size
