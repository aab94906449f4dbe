"""Pickled state dicts: the program, the archive around it, the older form."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import ModuleType

import atheris
from tests.checkpoint._corpus import CODE, DAMAGED, GOOD, TENSORS, armed, legacy_file, zip_file

from fuzz import _opcodes
from fuzz._guard import Finding
from fuzz._target import Run, Target
from stockpot.checkpoint import _header, _pickle, _pickle_machine

WATCHED: Sequence[ModuleType] = (_pickle, _pickle_machine, pickletools, _header)
_MARK = Path("/dev/shm/stockpot-mark")


def _programs() -> list[bytes]:
    wrapped = b"(dS'model'\n" + GOOD[:-1] + b"sS'epoch'\nI3\ns."
    hostile = [armed(program, _MARK) for program, _ in CODE.values()]
    return [GOOD, wrapped, *hostile, *(p for p in (*DAMAGED.values(), *TENSORS.values()) if len(p) < 2000)]


def _read(content: bytes) -> None:
    found = _pickle.read_state_dict(io.BytesIO(content), "model.pt")
    for info in found.tensors:
        if not 0 <= info.offset <= info.offset + info.nbytes <= len(content):
            raise Finding(f"accepted, but {info} lies outside the file")


def _prepare_program(folder: Path) -> Run:
    return lambda data: _read(legacy_file(data))


def _mutate_program(data: bytes, most: int, random: Random) -> bytes:
    changed = _opcodes.mutate_program(data, random) if random.random() < 0.8 else None
    return bytes(atheris.Mutate(data, most)) if changed is None else changed


def _prepare_whole(folder: Path) -> Run:
    return _read


def _mutate_archive(data: bytes, most: int, random: Random) -> bytes:
    """The program in the archive, a member's name or a field of the directory."""
    if random.random() < 0.5:
        return bytes(atheris.Mutate(data, most))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(member, archive.read(member)) for member in archive.infolist() if member.file_size < most]
    except Exception:  # a damaged archive raises almost anything
        return bytes(atheris.Mutate(data, most))
    if members and random.random() < 0.3:
        members.insert(0, random.choice(members))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for member, content in members:
            name, chance = member.filename, random.random()
            if name.endswith("data.pkl"):
                content = _mutate_program(content, most, random)
            if chance < 0.1:
                name = random.choice(
                    (f"../{name}", f"/{name}", name + "/data.pkl", "archive/data/0", "archive/byteorder")
                )
            kind = zipfile.ZIP_DEFLATED if 0.1 < chance < 0.2 else zipfile.ZIP_STORED
            info = zipfile.ZipInfo(name[:200])
            info.compress_type = kind
            archive.NameToInfo.pop(info.filename, None)  # zipfile warns of a name that stands twice
            archive.writestr(info, content)
    return stream.getvalue()


def _archives() -> list[bytes]:
    return [zip_file(program) for program in _programs()[:12]]


def _olds() -> list[bytes]:
    return [legacy_file(GOOD), legacy_file(GOOD, counts=(-1,)), legacy_file(GOOD, keys=None), b"", b"PK", b"\x80\x02."]


PICKLE = Target("pickle", _prepare_program, _programs, WATCHED, _mutate_program)
ARCHIVE = Target(
    "archive", _prepare_whole, _archives, (*WATCHED, zipfile), _mutate_archive, (b"PK\3\4", b"PK\1\2", b"PK\5\6")
)
LEGACY = Target("legacy", _prepare_whole, _olds, WATCHED, _mutate_program)
