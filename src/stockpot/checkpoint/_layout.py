"""Where each output tensor will lie: files, headers, offsets; decided before the first byte."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stockpot.checkpoint import _dtypes, _header
from stockpot.checkpoint._source import Source

KNOWN_STEMS = ("model", "open_clip_model", "diffusion_pytorch_model", "adapter_model")
DEFAULT_STEM = "model"
_SHARD = re.compile(r"^(?P<stem>.+)-\d{5,}-of-\d{5,}\.(safetensors|bin)$")

Spec = tuple[str, str, tuple[int, ...]]
"""(name, dtype, shape) of one tensor."""


@dataclass(frozen=True)
class OutFile:
    """One file of weights: its header and the places of its tensors, in data order.

    For a pickled output header and places are empty: they are known when its archive has been laid out on disk.
    """

    name: str
    header: bytes
    offsets: Mapping[str, int]
    size: int


@dataclass(frozen=True)
class Layout:
    """The weight files of an output; ``index`` is the name and content of the shard index, if any."""

    files: tuple[OutFile, ...]
    index: tuple[str, bytes] | None
    stem: str

    @property
    def total_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(file.size for file in self.files)


def plan_layout(
    specs: Sequence[Spec],
    template: Source,
    *,
    shard_bytes: int | None,
    single_file: bool,
    pickled: bool = False,
    metadata: Mapping[str, str],
    reserve: int = 0,
) -> Layout:
    """Split tensors into files as the template does, or by ``shard_bytes``, or into one file.

    Within a file tensors keep their order, wider dtypes first (so that every tensor is aligned to its items).
    """
    stem = _stem(template)
    if pickled:
        size = sum(_dtypes.nbytes(dtype, shape) + 64 for _, dtype, shape in specs)
        return Layout((OutFile(f"{stem}.pt", b"", {}, size),), None, stem)
    sizes = {name: _dtypes.nbytes(dtype, shape) for name, dtype, shape in specs}
    if single_file:
        parts = [list(specs)]
    elif shard_bytes is not None:
        parts = _greedy(specs, sizes, shard_bytes)
    else:
        parts = _as_template(specs, template)
    files = [
        pack_file(_file_name(stem, number, len(parts)), part, metadata, reserve) for number, part in enumerate(parts, 1)
    ]
    index = None
    if len(files) > 1:
        content = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file.name for file in files for name in sorted(file.offsets)},
        }
        index = (f"{stem}.safetensors.index.json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    return Layout(tuple(files), index, stem)


def header_bytes(specs: Sequence[Spec], metadata: Mapping[str, str], reserve: int) -> bytes:
    """The header of one file, tensors in the order that ``plan_layout`` gives them."""
    return _header.build(_ordered(specs), metadata, reserve)


def seal_header(header: bytes) -> bytes:
    """A header of a one-file output, with the digest of itself in it."""
    return _header.seal(header)


def is_sealed_header(path: Path) -> bool:
    """Whether the header of a one-file output is the one that was written."""
    with path.open("rb") as handle:
        head = handle.read(8)
        return _header.is_sealed(head + handle.read(min(int.from_bytes(head, "little"), _header.HEADER_CAP)))


def pack_file(name: str, specs: Sequence[Spec], metadata: Mapping[str, str], reserve: int = 0) -> OutFile:
    """One file: its header, and where each tensor lies."""
    header = header_bytes(specs, metadata, reserve)
    ordered = _ordered(specs)
    ranges = _header.place(_dtypes.nbytes(dtype, shape) for _, dtype, shape in ordered)
    offsets = {spec[0]: len(header) + begin for spec, (begin, _) in zip(ordered, ranges, strict=True)}
    return OutFile(name, header, offsets, len(header) + (ranges[-1][1] if ranges else 0))


def _ordered(specs: Sequence[Spec]) -> list[Spec]:
    return sorted(specs, key=lambda spec: -_dtypes.BITS[spec[1]])


def _file_name(stem: str, number: int, count: int) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.safetensors"


def _greedy(specs: Sequence[Spec], sizes: Mapping[str, int], limit: int) -> list[list[Spec]]:
    parts: list[list[Spec]] = [[]]
    used = 0
    for spec in specs:
        if parts[-1] and used + sizes[spec[0]] > limit:
            parts.append([])
            used = 0
        parts[-1].append(spec)
        used += sizes[spec[0]]
    return parts


def _as_template(specs: Sequence[Spec], template: Source) -> list[list[Spec]]:
    """One file per file of the template; what the template lacks goes into the last."""
    parts: dict[int, list[Spec]] = {}
    last = max((info.file for info in template.tensors.values()), default=0)
    for spec in specs:
        info = template.tensors.get(spec[0])
        parts.setdefault(last if info is None else info.file, []).append(spec)
    return [parts[number] for number in sorted(parts)] or [[]]


def _stem(template: Source) -> str:
    """The template's file stem if it is a folder's, with ``pytorch_model`` written as safetensors' ``model``."""
    if template.folder is None or not template.files:
        return DEFAULT_STEM
    name = Path(template.files[0].path).name
    shard = _SHARD.match(name)
    stem = shard["stem"] if shard else name.rsplit(".", 1)[0]
    if template.is_pickle and stem not in KNOWN_STEMS:
        return DEFAULT_STEM
    return stem
