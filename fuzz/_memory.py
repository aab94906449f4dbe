"""A folder that is only in memory, for readers of folders."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import BinaryIO

from fuzz._guard import Finding
from stockpot import errors
from stockpot.checkpoint._files import FileIdentity


class MemoryPlace:
    """Files by relative name; what leaves the folder is a finding."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files

    def names(self, folder: str) -> list[str]:
        """What lies in a folder of it."""
        _require_inside(folder)
        inside = f"{folder}/" if folder else ""
        rest = [name[len(inside) :] for name in self.files if name.startswith(inside)]
        return sorted({first + slash for first, slash, _ in (name.partition("/") for name in rest)})

    def open(self, name: str) -> BinaryIO:
        """A file's bytes."""
        _require_inside(name)
        if name not in self.files:
            raise errors.NotFoundError("no such file", file=name)
        return io.BytesIO(self.files[name])

    def identity(self, name: str, header_digest: str) -> FileIdentity:
        """Of a file that does not change."""
        return FileIdentity(name, header_digest, len(self.files[name]), 0, 0, 0)

    def label(self, name: str) -> str:
        """Its name."""
        return name

    def require(self, name: str, index: str) -> None:
        """A file that is there."""
        _require_inside(name)
        if name not in self.files:
            raise errors.ShardIndexError("the index names a file that is not there", file=index, got=repr(name))


def _require_inside(name: str) -> None:
    if ".." in PurePosixPath(name).parts or name.startswith("/"):
        raise Finding(f"leaves its folder: {name!r}")
