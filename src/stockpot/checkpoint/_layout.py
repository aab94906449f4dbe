"""Where each output tensor will lie: files, headers, offsets; decided before the first byte."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stockpot import errors
from stockpot.checkpoint import _dtypes, _header
from stockpot.checkpoint._source import DEFAULT_STEM, Part, Source, part_of

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
    """The weight files of an output; ``indexes``: name -> content of each part's shard index, if it has one."""

    files: tuple[OutFile, ...]
    indexes: Mapping[str, bytes]

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
    aliases: Mapping[str, str],
    reserve: int = 0,
) -> Layout:
    """Split tensors into files as the template does, or by ``shard_bytes``, or into one file.

    Each part of the template has files of its own. Within a file tensors keep their order, wider dtypes first (so that
    every tensor is aligned to its items). Raises OutputError for one file of several parts.
    """
    if (single_file or pickled) and len(template.parts) > 1:
        raise errors.OutputError(
            "a checkpoint of several parts does not fit into one file", got=", ".join(p.folder for p in template.parts),
            remedy="name a folder as --out",
        )  # fmt: skip
    if pickled:
        size = sum(_dtypes.nbytes(dtype, shape) + 64 for _, dtype, shape in specs)
        return Layout((OutFile(f"{DEFAULT_STEM}.pt", b"", {}, size),), {})
    folders = {part.folder: part for part in template.parts}
    by_folder: dict[str, list[Spec]] = {folder: [] for folder in folders}
    for spec in specs:
        by_folder[part_of(spec[0], folders).folder].append(spec)
    files: list[OutFile] = []
    indexes: dict[str, bytes] = {}
    for part in template.parts:
        own = by_folder[part.folder]
        if single_file:
            split = [own]
        elif shard_bytes is not None:
            split = _greedy(own, shard_bytes)
        else:
            split = _as_template(own, template)
        metadata = weight_metadata(template, part, aliases)
        names = [part.prefix + _file_name(part.stem, number, len(split)) for number in range(1, len(split) + 1)]
        made = [pack_file(name, some, metadata, reserve, part.prefix) for name, some in zip(names, split, strict=True)]
        files += made
        if len(made) > 1:
            indexes[f"{part.prefix}{part.stem}.safetensors.index.json"] = _index(own, made, part.prefix)
    return Layout(tuple(files), indexes)


def _index(specs: Sequence[Spec], files: Sequence[OutFile], prefix: str) -> bytes:
    cut = len(prefix)
    content = {
        "metadata": {"total_size": sum(_dtypes.nbytes(dtype, shape) for _, dtype, shape in specs)},
        "weight_map": {name[cut:]: file.name[cut:] for file in files for name in sorted(file.offsets)},
    }
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def weight_metadata(template: Source, part: Part, aliases: Mapping[str, str]) -> dict[str, str]:
    """``__metadata__`` of each weight file of a part: the template's, and the output's aliases."""
    cut = len(part.prefix)
    dropped = {alias[cut:] for alias in template.aliases if alias.startswith(part.prefix)} | _header.OWN_KEYS
    kept = {key: value for key, value in part.metadata.items() if key not in dropped}
    folders = {one.folder: one for one in template.parts}
    own = {
        alias[cut:]: name[cut:] for alias, name in aliases.items() if part_of(alias, folders) is folders[part.folder]
    }
    return {"format": "pt", **kept, **own}


def header_bytes(specs: Sequence[Spec], metadata: Mapping[str, str], reserve: int) -> bytes:
    """The header of one file, tensors in the order that ``plan_layout`` gives them."""
    return _header.build(_ordered(specs), metadata, reserve)


def seal_header(header: bytes) -> bytes:
    """A header of a one-file output, with the digest of itself in it."""
    return _header.seal(header)


def header_of(path: Path) -> bytes:
    """The header of a safetensors file, its length included, as far as the file has it."""
    with path.open("rb") as handle:
        head = handle.read(8)
        return head + handle.read(min(int.from_bytes(head, "little"), _header.HEADER_CAP))


def is_sealed_header(path: Path) -> bool:
    """Whether the header of a one-file output is the one that was written."""
    return _header.is_sealed(header_of(path))


def pack_file(
    name: str, specs: Sequence[Spec], metadata: Mapping[str, str], reserve: int = 0, prefix: str = ""
) -> OutFile:
    """One file: its header, which leaves the prefix out of names, and where each tensor lies."""
    cut = len(prefix)
    header = header_bytes([(full[cut:], dtype, shape) for full, dtype, shape in specs], metadata, reserve)
    ordered = _ordered(specs)
    ranges = _header.place(_dtypes.nbytes(dtype, shape) for _, dtype, shape in ordered)
    offsets = {spec[0]: len(header) + begin for spec, (begin, _) in zip(ordered, ranges, strict=True)}
    return OutFile(name, header, offsets, len(header) + (ranges[-1][1] if ranges else 0))


def _ordered(specs: Sequence[Spec]) -> list[Spec]:
    return sorted(specs, key=lambda spec: -_dtypes.BITS[spec[1]])


def _file_name(stem: str, number: int, count: int) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.safetensors"


def _greedy(specs: Sequence[Spec], limit: int) -> list[list[Spec]]:
    split: list[list[Spec]] = [[]]
    used = 0
    for spec in specs:
        size = _dtypes.nbytes(spec[1], spec[2])
        if split[-1] and used + size > limit:
            split.append([])
            used = 0
        split[-1].append(spec)
        used += size
    return split


def _as_template(specs: Sequence[Spec], template: Source) -> list[list[Spec]]:
    """One file per file of the template; what the template lacks goes into the last."""
    found: dict[int, list[Spec]] = {}
    last = max((template.tensors[name].file for name, _, _ in specs if name in template.tensors), default=0)
    for spec in specs:
        info = template.tensors.get(spec[0])
        found.setdefault(last if info is None else info.file, []).append(spec)
    return [found[number] for number in sorted(found)] or [[]]
