"""The ``.metadata`` of ``torch.distributed.checkpoint``: a pickle, interpreted by an allow-list of its own.

It says of every tensor its dtype, its shape, and which boxes of it lie where. Nothing of it is trusted: boxes must
tile their tensor, files must be plain names, ranges must be numbers.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stockpot import errors
from stockpot.checkpoint import _dtypes
from stockpot.checkpoint._header import RANK_CAP, require_name
from stockpot.checkpoint._pickle import PICKLE_CAP, PickledDtype, PickleReader
from stockpot.checkpoint._pickle_machine import OPAQUE, Function, PickleError, Record

METADATA = ".metadata"
_MODULE = "torch.distributed.checkpoint"
_RECORDS = {
    (f"{_MODULE}.metadata", "Metadata"),
    (f"{_MODULE}.metadata", "TensorStorageMetadata"),
    (f"{_MODULE}.metadata", "BytesStorageMetadata"),
    (f"{_MODULE}.metadata", "ChunkStorageMetadata"),
    (f"{_MODULE}.metadata", "MetadataIndex"),
    (f"{_MODULE}.metadata", "TensorProperties"),
    ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"),
    (f"{_MODULE}.filesystem", "_StorageInfo"),
}
_LEFT = {
    (f"{_MODULE}.metadata", "StorageMeta"),
    (f"{_MODULE}.metadata", "_MEM_FORMAT_ENCODING"),
    ("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"),
    ("torch.serialization", "_get_layout"),
}
Box = tuple[tuple[int, int], ...]
"""(begin, end) along each axis; of a 0-d tensor the empty one."""


@dataclass(frozen=True, slots=True)
class StatedChunk:
    """A box of a tensor, in ``length`` bytes of a file from ``offset`` on."""

    box: Box
    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class StatedTensor:
    """What the metadata says of a tensor; ``path``: the keys under which it was in the state that was saved."""

    dtype: str
    shape: tuple[int, ...]
    path: tuple[str | int, ...]
    chunks: tuple[StatedChunk, ...]


def read_metadata(data: bytes, label: str) -> dict[str, StatedTensor]:
    """Every tensor by its flat name; raises CheckpointError kinds."""
    if len(data) > PICKLE_CAP:
        raise errors.PickleFormatError("the metadata is absurdly large", file=label)
    root = PickleReader(label).load(io.BytesIO(data), _Globals(label).find)
    fields = root.fields if isinstance(root, Record) and root.kind == "Metadata" else {}
    stated, stored, paths = (fields.get(key) for key in ("state_dict_metadata", "storage_data", "planner_data"))
    if not isinstance(stated, dict) or not isinstance(stored, dict):
        raise errors.PickleFormatError("no metadata of a distributed checkpoint", file=label)
    places = _places(stored, label)
    found = {}
    for name, record in stated.items():
        if not isinstance(name, str):
            raise errors.PickleFormatError("a tensor without a name", file=label, got=repr(name)[:80])
        if isinstance(record, Record) and record.kind == "TensorStorageMetadata":
            require_name(name, label)
            found[name] = _tensor(name, record, places, _path(paths, name), label)
    return found


@dataclass(frozen=True)
class _Globals:
    """What this pickle may name beside what a state dict's may."""

    label: str

    def find(self, module: str, name: str) -> Any:
        """A record, a tuple of sizes, or something that does nothing."""
        if (module, name) in _RECORDS:
            return Function(lambda _: Record(name))
        if (module, name) == ("torch", "Size"):
            return Function(_sizes)
        return OPAQUE if (module, name) in _LEFT else PickleReader(self.label).find_global(module, name)


def _sizes(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """``torch.Size`` of a short list."""
    found = arguments[0] if arguments else ()
    if not isinstance(found, list | tuple) or len(found) > RANK_CAP:
        raise PickleError("sizes that are no short list")
    return tuple(found)


def _bad(what: str, label: str, name: str, got: object = None) -> errors.PickleFormatError:
    return errors.PickleFormatError(what, file=label, tensor=name, got=None if got is None else repr(got)[:80])


def _places(stored: Mapping[Any, Any], label: str) -> dict[tuple[object, object], Record]:
    """Record of the bytes by tensor and the offset of its box."""
    found: dict[tuple[object, object], Record] = {}
    for index, info in stored.items():
        if not isinstance(index, Record) or not isinstance(info, Record):
            raise errors.PickleFormatError("no metadata of a distributed checkpoint", file=label)
        offset = index.fields.get("offset")
        if isinstance(fqn := index.fields.get("fqn"), str) and (offset is None or _naturals(offset)):
            found[fqn, offset] = info
    return found


def _naturals(value: object) -> bool:
    return isinstance(value, tuple) and len(value) <= RANK_CAP and all(_is_natural(v) for v in value)


def _is_natural(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _path(paths: object, name: str) -> tuple[str | int, ...]:
    """The keys that led to a tensor, where they were saved; else its name alone."""
    found = paths.get(name) if isinstance(paths, dict) else None
    return found if isinstance(found, tuple) and found and all(type(key) in (str, int) for key in found) else (name,)


def _tensor(
    name: str, record: Record, places: Mapping[tuple[object, object], Record], path: tuple[str | int, ...], label: str
) -> StatedTensor:
    shape, chunks = record.fields.get("size"), record.fields.get("chunks")
    properties = record.fields.get("properties")
    state = properties.fields.get("state") if isinstance(properties, Record) else None
    dtype = state[0] if isinstance(state, tuple) and state else None
    if not isinstance(dtype, PickledDtype):
        raise _bad("a tensor without a dtype", label, name)
    if not _naturals(shape) or not isinstance(chunks, list):
        raise _bad("a tensor without a shape", label, name, shape)
    assert isinstance(shape, tuple)
    if _dtypes.count([size for size in shape if size]) > _dtypes.MAX_ELEMENTS:
        raise errors.BadShapeError("the shape's count is absurd", tensor=name, file=label, got=str(shape)[:80])
    found = tuple(_chunk(name, chunk, shape, places, label) for chunk in chunks)
    _require_tiling(name, shape, [chunk.box for chunk in found], label)
    return StatedTensor(dtype.code, shape, path, found)


def _chunk(
    name: str,
    chunk: object,
    shape: tuple[int, ...],
    places: Mapping[tuple[object, object], Record],
    label: str,
) -> StatedChunk:
    offsets = chunk.fields.get("offsets") if isinstance(chunk, Record) else None
    sizes = chunk.fields.get("sizes") if isinstance(chunk, Record) else None
    if not (_naturals(offsets) and _naturals(sizes)):
        raise _bad("a chunk without a place", label, name, offsets)
    assert isinstance(offsets, tuple)
    assert isinstance(sizes, tuple)
    inside = all(begin + size <= whole for begin, size, whole in zip(offsets, sizes, shape, strict=False))
    if not len(offsets) == len(sizes) == len(shape) or not inside:
        raise errors.OffsetError(
            "a chunk lies outside its tensor", tensor=name, file=label, expected=list(shape), got=(offsets, sizes)
        )
    info = places.get((name, offsets)) or places.get((name, None))
    if info is None:
        raise _bad("a chunk that no file holds", label, name, offsets)
    file, offset, length = (info.fields.get(key) for key in ("relative_path", "offset", "length"))
    if not isinstance(file, str) or not _is_plain(file):
        raise errors.ShardIndexError(
            "the metadata names a file outside its folder", tensor=name, file=label, expected="a plain name",
            got=repr(file)[:80],
        )  # fmt: skip
    if not _is_natural(offset) or not _is_natural(length):
        raise _bad("a chunk without a range", label, name)
    assert isinstance(offset, int)
    assert isinstance(length, int)
    if info.fields.get("transform_descriptors"):
        raise _bad("the chunks are compressed or otherwise transformed: save them plain", label, name)
    box = tuple((begin, begin + size) for begin, size in zip(offsets, sizes, strict=True))
    return StatedChunk(box, file, offset, length)


def _is_plain(file: str) -> bool:
    return bool(file) and file.isprintable() and not set(file) & set("/\\\0") and file not in (".", "..")


def _require_tiling(name: str, shape: tuple[int, ...], boxes: Sequence[Box], label: str) -> None:
    """Boxes of a tensor form a grid: along each axis intervals that follow one another, each combination once."""
    boxes = [box for box in boxes if all(end > begin for begin, end in box)]
    if 0 in shape:
        return
    if not shape:
        if len(boxes) != 1:
            raise errors.HoleError("a number in several chunks, or in none", tensor=name, file=label, got=len(boxes))
        return
    cells = 1
    for axis, size in enumerate(shape):
        intervals = sorted({box[axis] for box in boxes})
        ends = [0, *(end for _, end in intervals)]
        for (begin, _), end in zip(intervals, ends, strict=False):
            if begin != end:
                kind, what = (
                    (errors.HoleError, "a gap between the chunks")
                    if begin > end
                    else (errors.OverlapError, "the chunks overlap, or form no grid")
                )
                raise kind(what, tensor=name, file=label, expected=f"{end} along axis {axis}", got=begin)
        if ends[-1] != size:
            raise errors.HoleError("chunks are missing", tensor=name, file=label, expected=size, got=ends[-1])
        cells *= len(intervals)
    if len(boxes) != cells or len(set(boxes)) != cells:
        raise errors.HoleError(
            "the chunks do not tile the tensor", tensor=name, file=label, expected=cells, got=len(boxes)
        )
