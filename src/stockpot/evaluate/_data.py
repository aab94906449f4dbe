"""Digests of the files that an evaluation reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import xxhash

from stockpot import errors

_PIECE_BYTES = 1 << 20


def digest_of_files(files: Iterable[Path], root: Path) -> str:
    """Names (below ``root``) and contents, in sorted order. Cost: reading them."""
    digest = xxhash.xxh3_128()
    for path in sorted(files):
        digest.update(json.dumps(str(path.relative_to(root)) if path.is_relative_to(root) else path.name).encode())
        try:
            with path.open("rb") as stream:
                while piece := stream.read(_PIECE_BYTES):
                    digest.update(piece)
        except OSError as error:
            raise errors.UnreadableError(f"the data cannot be read ({error.strerror})", file=str(path)) from None
    return str(digest.hexdigest())
