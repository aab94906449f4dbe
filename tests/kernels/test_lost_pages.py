"""Rows that lie in files: what happens where such a file becomes shorter under the arithmetic."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stockpot.kernels import (
    LostPagesError,
    Row,
    catching_lost_pages,
    first_nonfinite,
    gram_blocks,
    gram_rows,
    is_compiled,
    mix,
)

pytestmark = pytest.mark.skipif(not is_compiled(), reason="the C program is not built")
ELEMENTS = 16 * mmap.PAGESIZE


def mapped(path: Path) -> np.ndarray:
    """A file of finite float32 numbers, as the page cache holds it."""
    np.linspace(-1, 1, ELEMENTS, dtype=np.float32).tofile(path)
    with path.open("rb") as handle:
        return np.frombuffer(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Two rows in files, of which the second is then cut to half its length."""
    found = [Row("float32", mapped(tmp_path / name)) for name in ("a", "b")]
    os.truncate(tmp_path / "b", 2 * ELEMENTS)
    return found


def test_every_call_ends_with_an_error(rows: list[Row]) -> None:
    """A page that is gone costs the call, not the process, as often as it happens."""
    out = Row("float32", np.empty(4 * ELEMENTS, dtype=np.uint8))
    with catching_lost_pages():
        for _ in range(3):
            with pytest.raises(LostPagesError):
                gram_blocks(rows)
            with pytest.raises(LostPagesError):
                gram_rows(rows, mmap.PAGESIZE)
            with pytest.raises(LostPagesError):
                mix(rows, np.array([0.5, 0.5]), out)
            with pytest.raises(LostPagesError):
                first_nonfinite(rows[1])


def test_what_is_left_is_still_right(rows: list[Row]) -> None:
    """After such an error the same thread computes on, with the same results."""
    half = [row.cut(0, ELEMENTS // 2) for row in rows]
    plain = [Row("float32", row.data.copy()) for row in half]
    with catching_lost_pages():
        with pytest.raises(LostPagesError):
            gram_blocks(rows)
        assert np.array_equal(gram_blocks(half), gram_blocks(plain))


CHILD = """
import faulthandler, mmap, os, sys
import numpy as np
from stockpot.kernels import catching_lost_pages
faulthandler.enable()
with open(sys.argv[1], "wb") as handle:
    handle.write(bytes(2 * mmap.PAGESIZE))
with open(sys.argv[1], "rb") as handle:
    data = np.frombuffer(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
os.truncate(sys.argv[1], 0)
if sys.argv[2] == "inside":
    with catching_lost_pages():
        with catching_lost_pages():
            pass
        print(data.sum())
else:
    with catching_lost_pages():
        pass
    print(data.sum())
"""


@pytest.mark.parametrize("where", ["inside", "after"])
def test_others_faults_are_left_to_others(where: str, tmp_path: Path) -> None:
    """A fault outside our calls goes to whoever was told of it before: here Python's own fault handler."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "file"), where], capture_output=True, text=True, check=False
    )
    assert child.returncode == -signal.SIGBUS
    assert "Bus error" in child.stderr
    assert "in <module>" in child.stderr
