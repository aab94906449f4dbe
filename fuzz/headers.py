"""Safetensors files: length, header, data."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import atheris
from tests.checkpoint._corpus import HEADERS

from fuzz import _json
from fuzz._guard import Finding
from fuzz._target import Run, Target
from stockpot.checkpoint import _dtypes, _folder, _header

DATA_BYTES = 4096
_LABEL = "model.safetensors"
VALUES = (*_json.VALUES, *_dtypes.BITS, "format", "pt")


def _prepare(folder: Path) -> Run:
    def run(data: bytes) -> None:
        tensors, *_ = _folder._read_file(io.BytesIO(data), _LABEL, 0)
        _header.is_sealed(data)
        end = len(data) - sum(info.nbytes for info in tensors)
        for info in tensors:
            if info.offset != end or info.nbytes != _dtypes.nbytes(info.dtype, info.shape):
                raise Finding(f"accepted, but {info} does not follow byte {end}")
            end += info.nbytes
        if end != len(data):
            raise Finding(f"accepted, but the tensors end at {end} of {len(data)} bytes")

    return run


def valid_files() -> list[bytes]:
    """Files as we write them: every dtype, no tensor, aliases, a seal."""
    kinds = [(f"{code}.{len(shape)}.{shape[0]}", code, shape) for code in _dtypes.BITS for shape in ((2, 4), (0, 3))]
    made = []
    for tensors in ([], kinds[:3], kinds):
        header = _header.seal(_header.build(tensors, {"format": "pt", **_header.blank_seal()}))
        made.append(header + bytes(sum(_dtypes.nbytes(code, shape) for _, code, shape in tensors)))
    return made


def _seeds() -> list[bytes]:
    return [*(lie.content for lie in HEADERS.values() if len(lie.content) < DATA_BYTES), *valid_files()]


def packed(tree: Any, random: Random) -> bytes:
    """A file of this header; mostly with as many bytes of data as the header says."""
    text = _json.dump(tree).encode("utf-8", "surrogatepass")
    ends = []
    for pair in tree if isinstance(tree, _json.Pairs) else ():
        for key, value in pair[1] if isinstance(pair[1], _json.Pairs) else ():
            if key == "data_offsets" and isinstance(value, list) and value and type(value[-1]) is int:
                ends.append(value[-1])
    size = max((end for end in ends if 0 <= end <= DATA_BYTES), default=0)
    if random.random() < 0.05:
        size += random.choice((-1, 1, 8))
    return struct.pack("<Q", len(text)) + text + bytes(max(size, 0))


def _relaid(tree: Any) -> None:
    """Offsets as dtype and shape want them, so that more of the checks are reached."""
    begin = 0
    for pair in tree if isinstance(tree, _json.Pairs) else ():
        entry = dict(map(tuple, pair[1])) if isinstance(pair[1], _json.Pairs) else {}
        dtype, shape = entry.get("dtype"), entry.get("shape")
        if dtype not in _dtypes.BITS or not isinstance(shape, list) or not all(type(n) is int for n in shape):
            continue
        size = _dtypes.BITS[dtype] * _dtypes.count(shape) // 8
        for own in pair[1]:
            if own[0] == "data_offsets":
                own[1] = [begin, begin + size]
        begin += size


def _mutate(data: bytes, most: int, random: Random) -> bytes:
    chance = random.random()
    if chance < 0.1 or len(data) < 10:
        return bytes(atheris.Mutate(data, most))
    (length,) = struct.unpack("<Q", data[:8])
    text = data[8 : 8 + min(length, len(data))]
    if chance < 0.3:
        text = bytes(atheris.Mutate(text, most - 8))
        return struct.pack("<Q", len(text)) + text + data[8 + min(length, len(data)) :]
    try:
        tree = _json.mutate_tree(_json.parse(text), random, VALUES)
        if chance < 0.7:
            _relaid(tree)
        return packed(tree, random)
    except (ValueError, RecursionError, TypeError, OverflowError):
        return bytes(atheris.Mutate(data, most))


WATCHED: Sequence[ModuleType] = (_header, _dtypes, _folder, json.decoder)
TARGET = Target("header", _prepare, _seeds, WATCHED, _mutate, (b'"dtype"', b'"shape"', b'"data_offsets"'))
