"""The journal of a merge under way: one line for each finished thing, each with its own digest.

A line that was torn by a crash does not match its digest; it and all after it are forgotten.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from stockpot.checkpoint._header import NAME_CAP

CLOSING = "closing"
"""Key of the journal's last record: the name under which the old OUT lies meanwhile, or nothing."""
SIZE_CAP = 1 << 28
_NAME_BYTES = 255
_FORMS = ({"job"}, {"tensor", "digest"}, {"gram"}, {CLOSING, "file", "old"})
_DIGEST = re.compile(r"[0-9a-f]{32}", re.ASCII)


def encode(record: Mapping[str, Any]) -> bytes:
    """One line: digest, space, JSON."""
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


def decode(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """The records of the intact lines from the start, and how many bytes those lines take."""
    records: list[dict[str, Any]] = []
    intact = 0
    while (end := content.find(b"\n", intact)) >= 0:
        digest, _, text = content[intact:end].partition(b" ")
        if xxhash.xxh3_64_hexdigest(text).encode() != digest:
            break
        try:
            record = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError):
            break
        if not _is_record(record):
            break
        records.append(record)
        intact = end + 1
    return records, intact


def _is_record(record: object) -> bool:
    """Whether it is one of those that are written: which job it is, a tensor, inner products, or the last one."""
    if not isinstance(record, dict) or set(record) not in _FORMS:
        return False
    if CLOSING in record:
        return isinstance(record["old"], str) and _is_name(record[CLOSING]) and _is_name(record["file"] or "")
    return all(isinstance(value, str) and _is_value(key, value) for key, value in record.items())


def _is_value(key: str, value: str) -> bool:
    """Whether a record may say that: digests are XXH3-128, names of tensors no longer than in a header."""
    if key == "digest":
        return _DIGEST.fullmatch(value) is not None
    return key not in ("tensor", "gram") or len(value) <= NAME_CAP


def _is_name(value: object) -> bool:
    """Whether it is nothing, or what a file beside another can be called."""
    return (
        isinstance(value, str)
        and not {"/", "\0"} & set(value)
        and value not in (".", "..")
        and len(value.encode("utf-8", "surrogatepass")) <= _NAME_BYTES
    )


def opened_journal(path: Path, flags: int) -> int:
    """Descriptor of a journal; OSError where it is none: no regular file (a pipe would keep us waiting), or absurdly
    large."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size > SIZE_CAP:
        os.close(fd)
        raise OSError(errno.EINVAL, "not a journal", str(path))
    return fd


class Journal:
    """Append-only, synced by ``commit``."""

    def __init__(self, path: Path) -> None:
        self._fd = opened_journal(path, os.O_RDWR | os.O_CREAT)
        with open(self._fd, "rb", closefd=False) as handle:
            content = handle.read()
        self.records, intact = decode(content)
        self._ends = [line.end() for line in re.finditer(rb"\n", content[:intact])]
        self._torn = intact < len(content)
        os.lseek(self._fd, intact, os.SEEK_SET)

    def forget(self, keep: int = 1) -> None:
        """Drop all records but the first ones (the very first names the job), on disk too: what they spoke of is about
        to be written over."""
        self.records, self._ends = self.records[:keep], self._ends[:keep]
        os.ftruncate(self._fd, self._ends[-1] if self._ends else 0)
        self._torn = False
        os.lseek(self._fd, 0, os.SEEK_END)
        os.fdatasync(self._fd)

    def commit(self, lines: bytes) -> None:
        """Append whole lines and wait until they are on disk."""
        if self._torn:  # not before something is written: the file may be another's
            os.ftruncate(self._fd, os.lseek(self._fd, 0, os.SEEK_CUR))
            self._torn = False
        view = memoryview(lines)
        while view:
            view = view[os.write(self._fd, view) :]
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
