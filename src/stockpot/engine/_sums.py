"""``SHA256SUMS``, as ``sha256sum -c`` reads it: one form, written and read here."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

SUMS = "SHA256SUMS"
_LINE = re.compile(rb"(\\?)([0-9a-f]{64})  ([^\n]+)\n", re.DOTALL)
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_PIECE = 1 << 20


def sums(contents: Mapping[str, bytes], known: Mapping[str, str]) -> bytes:
    """The file for the small files; ``known``: digests of those that were copied."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()} | dict(known)
    return b"".join(_line(digest, name) for name, digest in sorted(digests.items()))


def read_sums(text: bytes) -> tuple[dict[str, str], list[str]]:
    """Digests by name, and what is wrong with the file itself."""
    found: dict[str, str] = {}
    problems = []
    for number, line in enumerate(re.findall(rb"[^\n]*\n|[^\n]+", text), 1):
        match = _LINE.fullmatch(line)
        name = _unescaped(match[3], bool(match[1])) if match else ""
        if not match or _line(match[2].decode(), name) != line:
            problems.append(f"{SUMS}: line {number} cannot be read: {line[:60]!r}")
        elif name in found:
            problems.append(f"{SUMS}: line {number} is of {name} again")
        else:
            found[name] = match[2].decode()
    return found, problems


def file_sum(path: Path) -> str:
    """SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _line(digest: str, name: str) -> bytes:
    escaped = "".join(_ESCAPES.get(character, character) for character in name)
    return (b"\\" if escaped != name else b"") + f"{digest}  ".encode() + os.fsencode(escaped) + b"\n"


def _unescaped(name: bytes, is_escaped: bool) -> str:
    text = os.fsdecode(name)
    if not is_escaped:
        return text
    plain = {escape: character for character, escape in _ESCAPES.items()}
    return re.sub(r"\\[\\nr]", lambda match: plain[match[0]], text)
