"""OUT.pt: the archive of ``torch.save``, laid out first and filled by range, so that no model is ever in memory."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import xxhash

from stockpot import errors
from stockpot.checkpoint._dtypes import TORCH_NAMES
from stockpot.checkpoint._layout import Spec
from stockpot.checkpoint._pickle import ARCHIVE_ERRORS, PICKLE_CAP, read_state_dict, require_plain

PROVENANCE_MEMBER = "stockpot.json"
_PIECE = 4 << 20
_DESCRIPTOR = b"PK\x07\x08"
_SEAL = b"stockpot seal "
"""Begins the archive's comment; the digest of all that is no tensor's follows, and the file ends."""
_DIGITS = 32
Spans = Iterable[tuple[int, int]]
"""Where tensors begin and end in a file."""


def write_skeleton(path: Path, specs: Sequence[Spec], aliases: Mapping[str, str]) -> dict[str, int]:
    """Write an archive whose storages are holes of the right size; offset of each tensor's bytes by name."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        tensors = {name: torch.empty(shape, dtype=getattr(torch, TORCH_NAMES[dtype])) for name, dtype, shape in specs}
        tensors.update({alias: tensors[name] for alias, name in aliases.items()})
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(tensors, path)
    return offsets(path)


def offsets(path: Path) -> dict[str, int]:
    """Where each tensor's bytes lie in a skeleton."""
    with path.open("rb") as handle:
        return {info.name: info.offset for info in read_state_dict(handle, str(path)).tensors}


def seal(path: Path, provenance: bytes, tensors: Spans | None = None) -> None:
    """Fill in the checksums of the storages (they were holes when the archive was made), add the provenance and a seal.

    ``tensors``: where they lie, as ``write_skeleton`` said; without it the archive's own pickle is asked.

    The seal is needed because most of an archive is said twice or to nobody: times, flags, padding, local headers.
    """
    with zipfile.ZipFile(path, "a") as archive, path.open("r+b") as handle:
        prefix = archive.infolist()[0].filename.split("/", 1)[0]
        name = f"{prefix}/{PROVENANCE_MEMBER}"
        member = archive.filelist[-1]
        if member.filename == name:  # of an earlier run which got this far: what is added goes where it began
            archive.filelist.remove(member)
            archive.NameToInfo.pop(name)
            archive.start_dir = member.header_offset
        _fill_checksums(archive, handle, prefix)
        archive.writestr(zipfile.ZipInfo(name), provenance)
        archive.comment = _SEAL + b"0" * _DIGITS
    with path.open("r+b") as handle:
        digest = _frame_digest(handle, str(path), tensors)
        handle.seek(-_DIGITS, io.SEEK_END)
        handle.write(digest)


def _fill_checksums(archive: zipfile.ZipFile, handle: BinaryIO, prefix: str) -> None:
    for member in archive.infolist():
        if not member.filename.startswith(f"{prefix}/data/") or not member.file_size:
            continue
        handle.seek(member.header_offset + 26)
        name_bytes, extra_bytes = struct.unpack("<HH", handle.read(4))
        begin = member.header_offset + 30 + name_bytes + extra_bytes
        handle.seek(begin)
        checksum, left = 0, member.file_size
        while left:
            piece = handle.read(min(_PIECE, left))
            checksum, left = zlib.crc32(piece, checksum), left - len(piece)
        member.CRC = checksum
        if handle.read(4) == _DESCRIPTOR:
            handle.seek(begin + member.file_size + 4)
            handle.write(struct.pack("<I", checksum))


def is_sealed_archive(path: Path, tensors: Spans | None = None) -> bool | None:
    """Whether an archive is the one that was sealed, its tensors aside; None where it has no seal.

    ``tensors``: where its pickle says that they lie, if it was read already.
    """
    with path.open("rb") as handle:
        size = handle.seek(0, io.SEEK_END)
        handle.seek(max(size - len(_SEAL) - _DIGITS, 0))
        stated = handle.read()
        if not stated.startswith(_SEAL):
            return None
        return stated[len(_SEAL) :] == _frame_digest(handle, str(path), tensors)


def _frame_digest(handle: BinaryIO, path: str, tensors: Spans | None = None) -> bytes:
    """The digest of all bytes of an archive that are no tensor's, the digits of the seal left out."""
    if tensors is None:
        handle.seek(0)
        tensors = [(info.offset, info.offset + info.nbytes) for info in read_state_dict(handle, path).tensors]
    size = handle.seek(0, io.SEEK_END)
    digest, begin = xxhash.xxh3_128(), 0
    for start, stop in [*tensors, (size - _DIGITS, size)]:
        handle.seek(begin)
        while begin < start:
            piece = handle.read(min(_PIECE, start - begin))
            digest.update(piece)
            begin += len(piece)
        begin = max(begin, stop)
    return digest.hexdigest().encode()


def read_provenance(path: Path) -> bytes | None:
    """The provenance of an archive that ``seal`` finished, or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            require_plain(members, str(path))
            member = next((m for m in members if m.filename.endswith(f"/{PROVENANCE_MEMBER}")), None)
            return archive.read(member) if member is not None and member.file_size <= PICKLE_CAP else None
    except (
        *ARCHIVE_ERRORS,
        errors.PickleFormatError,
    ):  # not ours, or not to be told: whoever asks must not take it for ours
        return None


def damaged_member(path: Path) -> str | None:
    """The first member of an archive, weights aside, whose bytes are not those of its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if "/data/" not in name:
                    archive.read(name)
    except ARCHIVE_ERRORS as error:
        return str(error)
    return None
