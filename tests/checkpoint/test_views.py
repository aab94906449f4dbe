"""Bytes of files without a copy: the same as read, or none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import stockpot
from stockpot import errors
from stockpot.checkpoint import _files, open_checkpoint


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three tensors in one file."""
    path = tmp_path / "model.safetensors"
    save_file({name: torch.randn(300, 70) for name in "abc"}, path)
    return path


def test_a_view_is_what_reading_gives(file: Path) -> None:
    """Any range of any tensor, at the address that it says."""
    checkpoint = open_checkpoint(file)
    for info in checkpoint.tensors.values():
        for start, size in ((0, info.nbytes), (12, 5000), (info.nbytes - 4, 4)):
            read = bytearray(size)
            checkpoint.read_into(info, start, memoryview(read))
            view = checkpoint.view(info, start, size)
            assert view is not None
            assert view.data.tobytes() == read
            assert view.address == view.data.ctypes.data


def test_a_dropped_view_can_be_looked_at_again(tmp_path: Path) -> None:
    """Dropping takes the range out of our memory, not out of the file."""
    path = tmp_path / "large.safetensors"
    save_file({"w": torch.ones(1 << 24)}, path)
    checkpoint = open_checkpoint(path)
    info = checkpoint.tensors["w"]
    view = checkpoint.view(info, 0, info.nbytes)
    assert view is not None

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssFile")) * 1024

    before = resident()
    total = int(view.data.sum(dtype=np.int64))
    assert resident() - before > info.nbytes // 2
    checkpoint.drop_views([info])
    assert resident() - before < info.nbytes // 4
    assert int(view.data.sum(dtype=np.int64)) == total


def test_a_file_that_became_shorter_is_read_instead(file: Path) -> None:
    """No view of what is not there; reading then says that it is not."""
    checkpoint = open_checkpoint(file)
    os.truncate(file, file.stat().st_size // 2)
    last = checkpoint.tensors["c"]
    assert checkpoint.view(last, 0, last.nbytes) is None
    with pytest.raises(errors.InputChangedError):
        checkpoint.read_into(last, 0, memoryview(bytearray(last.nbytes)))


def test_files_that_cannot_be_mapped_merge_to_the_same_bytes(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems have no mappings: then the inputs are read."""
    other, third = tmp_path / "other.safetensors", tmp_path / "third.safetensors"
    for path in (other, third):
        save_file({name: torch.randn(300, 70) for name in "abc"}, path)
    made = []
    for name in ("seen", "read"):
        stockpot.merge("model_stock", base=file, models=[other, third], out=tmp_path / name / "out.safetensors")
        made.append((tmp_path / name / "out.safetensors").read_bytes())

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(19, "No such device")

        monkeypatch.setattr(_files.mmap, "mmap", refuse)
    assert made[0] == made[1]


def descriptors() -> int:
    """How many this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_many_shards_are_not_all_kept_open(tmp_path: Path) -> None:
    """A thousand shards are seen one after the other with few descriptors; a view outlives its place in the pool."""
    shards = 1000
    paths = []
    for number in range(shards):
        path = tmp_path / f"{number}.safetensors"
        save_file({"w": torch.full((4,), float(number))}, path)
        paths.append(str(path))
    pool = _files.FilePool(paths)
    before = descriptors()
    size = 16
    views = [pool.view(number, Path(paths[number]).stat().st_size - size, size) for number in range(shards)]
    assert [float(view.data.view(np.float32)[0]) for view in views if view] == list(range(shards))
    del views
    assert descriptors() - before <= _files.MOST + 1
    pool.close()
    assert descriptors() == before


def test_a_forgotten_pool_closes_its_files(file: Path) -> None:
    """Whoever drops a checkpoint without closing it leaves no descriptor open."""
    before = descriptors()
    checkpoint = open_checkpoint(file)
    info = checkpoint.tensors["a"]
    checkpoint.read_into(info, 0, memoryview(bytearray(8)))
    assert descriptors() == before + 1
    del checkpoint
    assert descriptors() == before
