"""A reader with a bug behind five branches: blind mutation does not get there, what coverage tells does."""

from __future__ import annotations

import sys
from pathlib import Path

from fuzz._target import Run, Target


def reader(data: bytes) -> int:
    """Fails on what begins with ``stock``; looks at one byte after the other."""
    if len(data) < 5 or data[0] != ord("s"):
        return 0
    if data[1] != ord("t"):
        return 1
    if data[2] != ord("o"):
        return 2
    if data[3] != ord("c"):
        return 3
    if data[4] != ord("k"):
        return 4
    raise KeyError("the planted bug")


def _prepare(folder: Path) -> Run:
    return reader


TARGET = Target("planted", _prepare, lambda: [b"12345678"], (sys.modules[__name__],), max_bytes=8)
