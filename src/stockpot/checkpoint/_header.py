"""The safetensors header: bytes <-> named tensors. Reader and writer share one layout function, ``place``.

Format: 8 bytes little-endian header length n, n bytes of JSON (an object: name -> {dtype, shape, data_offsets}, and
optionally ``__metadata__``: str -> str), then the data. What the format demands, and why we check it before use:

- n fits the file and a cap (a lying length must not make us allocate);
- names are unique (two readers could otherwise see two different tensors);
- offsets are ordered, inside the file, and neither overlap nor leave holes (hidden bytes, double reads);
- the bytes of a tensor are exactly those of its dtype and shape.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from stockpot import errors
from stockpot.checkpoint import _dtypes

HEADER_CAP = 100_000_000
"""Largest header that the format's own reader accepts, in bytes."""
RANK_CAP = 64
NAME_CAP = 1000
"""Longest name of a tensor, in characters: patterns are held against names, some in the square of their length."""
ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies.

    ``offset`` counts from the start of file number ``file`` of its checkpoint. ``strides`` (in elements) is None for
    the dense row-major case; otherwise the ``nbytes`` bytes are a window that must be gathered by strides.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    offset: int
    nbytes: int
    strides: tuple[int, ...] | None = None
    nominal: str | None = None
    """The dtype that counts where values are computed and given wider than anybody stored them."""

    @property
    def output_dtype(self) -> str:
        """The dtype in which an output would store it."""
        return self.nominal or self.dtype

    @property
    def moved_bytes(self) -> int:
        """Bytes that are stored of it, which are fewer than those of values that are computed."""
        return self.nbytes if self.nominal is None else _dtypes.nbytes(self.nominal, self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor itself, dense."""
        return _dtypes.nbytes(self.dtype, self.shape)


def place(sizes: Iterable[int]) -> list[tuple[int, int]]:
    """The one layout: consecutive (begin, end) byte ranges from 0, without holes."""
    ranges, begin = [], 0
    for size in sizes:
        ranges.append((begin, begin + size))
        begin += size
    return ranges


def build(tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str], reserve: int = 0) -> bytes:
    """Header bytes (length prefix included) for (name, dtype, shape) in data order, padded with spaces.

    ``reserve`` is the least length of the JSON part, so that metadata known only later can take its place.
    """
    ranges = place(_dtypes.nbytes(dtype, shape) for _, dtype, shape in tensors)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for (name, dtype, shape), (begin, end) in zip(tensors, ranges, strict=True):
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    length = -(-max(len(text), reserve) // ALIGNMENT) * ALIGNMENT
    if length > HEADER_CAP:
        raise errors.OutputError("the output's header would be too long", expected=f"{HEADER_CAP} bytes", got=length)
    return struct.pack("<Q", length) + text.ljust(length)


SEAL = "stockpot_seal"
STATISTICS = "stockpot_statistics"
"""Metadata that says how a file of statistics was made."""
OWN_KEYS = frozenset(("stockpot", SEAL, STATISTICS))
"""Metadata that says how a file was made: another file made from it does not inherit them."""
_BLANK = "0" * 32


def seal(header: bytes) -> bytes:
    """The header with the digest of itself (taken with zeros in the digest's place) under ``SEAL``."""
    return header.replace(_seal_entry(_BLANK), _seal_entry(xxhash.xxh3_128_hexdigest(header)), 1)


def blank_seal() -> dict[str, str]:
    """The metadata entry that ``seal`` fills in."""
    return {SEAL: _BLANK}


def is_sealed(header: bytes) -> bool:
    """Whether a header is the one that was sealed."""
    match = re.search(_seal_entry("([0-9a-f]{32})"), header)
    if match is None:
        return False
    blank = header[: match.start(1)] + _BLANK.encode() + header[match.end(1) :]
    return xxhash.xxh3_128_hexdigest(blank).encode() == match[1]


def _seal_entry(digest: str) -> bytes:
    return f'"{SEAL}":"{digest}"'.encode()


def length(prefix: bytes, file_bytes: int, path: str) -> int:
    """The header's length from the first 8 bytes, checked against the file and the cap."""
    if len(prefix) < 8:
        raise errors.TruncatedFileError(
            "not a safetensors file", file=path, expected="at least 8 bytes", got=f"{len(prefix)} bytes"
        )
    (n,) = struct.unpack("<Q", prefix)
    if n > HEADER_CAP:
        raise errors.HeaderLengthError(
            "the header's length is absurd", file=path, expected=f"at most {HEADER_CAP} bytes", got=n
        )
    if n + 8 > file_bytes:
        raise errors.TruncatedFileError(
            "the file ends inside its header",
            file=path,
            expected=f"{n + 8} bytes or more",
            got=f"{file_bytes} bytes",
            remedy="copy or download it again",
        )
    return int(n)


def parse(text: bytes, data_bytes: int, path: str, file: int = 0) -> tuple[list[TensorInfo], dict[str, str]]:
    """Tensors (in the order of their bytes) and metadata of a header whose data section has ``data_bytes`` bytes."""
    header = _load_json(text, path)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise errors.HeaderSyntaxError("__metadata__ is not a map of strings", file=path)
    base = 8 + len(text)
    tensors = [_tensor(name, entry, data_bytes, base, path, file) for name, entry in header.items()]
    tensors.sort(key=lambda info: (info.offset, info.nbytes))
    _check_cover(tensors, base, data_bytes, path)
    return tensors, metadata


def _load_json(text: bytes, path: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise errors.DuplicateNameError("the header names a tensor twice", tensor=twice, file=path)
        return found

    if not text.startswith(b"{"):
        raise errors.HeaderSyntaxError("the header is not a JSON object", file=path, got=repr(text[:16]))
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except errors.StockpotError:
        raise
    except (ValueError, RecursionError) as error:
        raise errors.HeaderSyntaxError(f"the header is not JSON ({error})", file=path) from None
    if not isinstance(header, dict):
        raise errors.HeaderSyntaxError("the header is not a JSON object", file=path)
    return header


def _is_natural(value: object) -> bool:
    return type(value) is int and value >= 0


def require_name(name: str, path: str) -> None:
    """A tensor's name must be text that can be written, of sane length."""
    if len(name) > NAME_CAP:
        raise errors.HeaderSyntaxError(
            "a tensor's name is absurdly long", file=path, expected=f"at most {NAME_CAP} characters",
            got=f"{len(name)}: {ascii(name)[:80]}",
        )  # fmt: skip
    try:
        name.encode()
    except UnicodeEncodeError:
        raise errors.HeaderSyntaxError("a tensor's name is no Unicode text", file=path, got=ascii(name)[:80]) from None


def _tensor(name: str, entry: object, data_bytes: int, base: int, path: str, file: int) -> TensorInfo:
    require_name(name, path)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise errors.HeaderSyntaxError(
            "a header entry is not {dtype, shape, data_offsets}", tensor=name, file=path, got=repr(entry)[:80]
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _dtypes.BITS:
        raise errors.UnknownDtypeError("unknown dtype in the header", tensor=name, file=path, got=repr(dtype)[:40])
    if not isinstance(shape, list) or len(shape) > RANK_CAP or not all(map(_is_natural, shape)):
        raise errors.BadShapeError("a shape must be a list of sizes >= 0", tensor=name, file=path, got=repr(shape)[:80])
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_natural, offsets)):
        raise errors.OffsetError(
            "data_offsets must be two numbers >= 0", tensor=name, file=path, got=repr(offsets)[:80]
        )
    begin, end = offsets
    if end < begin:
        raise errors.OffsetError("data_offsets run backwards", tensor=name, file=path, got=f"[{begin}, {end}]")
    if _dtypes.count([size for size in shape if size]) > _dtypes.MAX_ELEMENTS:
        raise errors.BadShapeError("the shape's count is absurd", tensor=name, file=path, got=repr(shape)[:80])
    try:
        size = _dtypes.nbytes(dtype, shape)
    except ValueError as error:
        raise errors.BadShapeError(str(error), tensor=name, file=path) from None
    if size != end - begin:
        raise errors.BadShapeError(
            f"the bytes do not fit {dtype} {shape}", tensor=name, file=path, expected=f"{size} bytes", got=end - begin
        )
    if end > data_bytes:
        raise errors.TruncatedFileError(
            "the file ends before the tensor does",
            tensor=name,
            file=path,
            expected=f"{base + end} bytes",
            got=f"{base + data_bytes} bytes",
            remedy="copy or download it again",
        )
    return TensorInfo(name, dtype, tuple(shape), file, base + begin, size)


def _check_cover(tensors: Sequence[TensorInfo], base: int, data_bytes: int, path: str) -> None:
    """Each tensor must lie where ``place`` would put it, and the last must end with the file."""
    for info, (begin, _) in zip(tensors, place(info.nbytes for info in tensors), strict=True):
        got = info.offset - base
        if got != begin:
            kind, what = (
                (errors.OverlapError, "two tensors share bytes")
                if got < begin
                else (errors.HoleError, "bytes that belong to no tensor")
            )
            raise kind(what, tensor=info.name, file=path, expected=f"data offset {begin}", got=got)
    end = sum(info.nbytes for info in tensors)
    if end != data_bytes:
        raise errors.HoleError(
            "bytes after the last tensor", file=path, expected=f"{base + end} bytes", got=base + data_bytes
        )
