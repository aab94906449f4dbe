"""A layer between the program and its files: it records all calls and breaks some (native/faults.c)."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "native" / "faults.c"
HEAD = struct.Struct("<4I4Q")


@dataclass(frozen=True, slots=True)
class Call:
    """One call, as it was made: its name, the path (and the new one of a rename), what they named, where, what bytes.

    ``offset``: of a write, where; of a truncation or allocation, the size of the file then.
    """

    name: str
    path: str
    other: str = ""
    inode: int = 0
    other_inode: int = 0
    offset: int = 0
    data: bytes = b""


@dataclass(frozen=True)
class Layer:
    """The compiled layer."""

    library: Path

    @classmethod
    def build(cls, folder: Path) -> Layer:
        """Compile it; the test is skipped where that cannot be done."""
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        if compiler is None:
            pytest.skip("no C compiler (cc, gcc, clang): faults of files cannot be made")
        library = folder / "faults.so"
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
        subprocess.run(command, check=True)
        return cls(library)

    def environment(
        self,
        under: Path,
        *rules: str,
        log: Path | None = None,
        slow_microseconds: int = 0,
        clock_seconds: int = 0,
        syncs: bool = True,
    ) -> dict[str, str]:
        """Variables of a process whose files ``under`` that folder go through the layer."""
        settings = {
            "FAULTS_UNDER": str(under),
            "FAULTS_RULES": ";".join(rules),
            "FAULTS_LOG": str(log) if log else None,
            "FAULTS_SLOW": str(slow_microseconds) if slow_microseconds else None,
            "FAULTS_CLOCK": str(clock_seconds) if clock_seconds else None,
            "FAULTS_NOSYNC": None if syncs else "1",
        }
        given = {name: value for name, value in settings.items() if value is not None}
        return {**os.environ, "STOCKPOT_NATIVE": "any", **given, "LD_PRELOAD": str(self.library)}


def calls(log: Path) -> list[Call]:
    """What was recorded, in order."""
    return list(_parsed(log.read_bytes())) if log.exists() else []


def _parsed(content: bytes) -> Iterator[Call]:
    place = 0
    while place < len(content):
        call, path, other, _, inode, other_inode, offset, size = HEAD.unpack_from(content, place)
        place += HEAD.size
        parts = []
        for length in (call, path, other):
            parts.append(os.fsdecode(content[place : place + length]))
            place += length
        data = content[place : place + size] if parts[0] == "write" else b""
        place += len(data)
        yield Call(*parts, inode, other_inode, offset, data)
