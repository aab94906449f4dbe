"""How a finished OUT.partial becomes OUT, and how the next run mends what was cut off meanwhile.

Each step is on disk before the next one begins. Before the first, the journal says where the old OUT will be put: what
lies there afterwards is ours to remove, or to put back; anything else under such a name is the user's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stockpot import errors
from stockpot.checkpoint._descriptors import opened
from stockpot.checkpoint._journal import CLOSING, decode

JOURNAL = ".stockpot-journal"
LOCK = ".stockpot-lock"
MARK = "stockpot.json"
OLD = ".old"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NO_SYNC = (errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.EROFS)
"""What systems say that cannot sync a folder, or not this one: then there is nothing to wait for."""


def partial_of(out: Path) -> Path:
    """Where OUT is staged."""
    return out.with_name(out.name + ".partial")


def sync_folder(folder: Path) -> None:
    """The names in it are on disk afterwards."""
    try:
        fd = opened(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def empty(folder: Path, *kept: str) -> None:
    """Remove what a partial holds but its journal and lock; as long as anything is there, the journal says whose."""
    for entry in folder.iterdir():
        if entry.name not in (kept or (JOURNAL, LOCK)):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    sync_folder(folder)


def remove_old(folder: Path) -> None:
    """Remove an old OUT; as long as anything is there, so is what says that it was ours."""
    empty(folder, MARK)
    (folder / MARK).unlink(missing_ok=True)
    folder.rmdir()
    sync_folder(folder.absolute().parent)


def remove_partial(folder: Path) -> None:
    """Remove all of a partial."""
    empty(folder)
    for name in (JOURNAL, LOCK):
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()


def replace(source: Path, out: Path, close: Callable[[str], None]) -> None:
    """Rename to OUT, in place of an old OUT, which is then removed. ``close`` puts the closing record on disk."""
    old = out.with_name(out.name + OLD)
    aside = source if out.is_dir() else None
    close(aside.name if aside else "")
    if aside is None:
        source.replace(out)
    elif not exchange(source, out):
        if old.exists() or old.is_symlink():
            raise errors.RunError(
                "something lies where the old output would be put meanwhile",
                file=str(old),
                remedy="move it away, then run the same command: it goes on",
            )
        aside = old
        close(aside.name)
        out.rename(aside)
        source.rename(out)
    sync_folder(out.absolute().parent)
    if aside is not None:
        remove_old(aside)


def exchange(source: Path, out: Path) -> bool:
    """Swap two folders in one step, where the system can (Linux, renameat2)."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(out), _RENAME_EXCHANGE) == 0)


def repair(out: Path) -> None:
    """Mend what was cut off while OUT was renamed: an old OUT that was put aside comes back where the new one is not
    there yet, and is removed where it is."""
    with _cut_off(partial_of(out)) as record:
        if record is not None:
            old = _put_aside(out, record)
            if out.is_file() and record.get("file") and not (partial_of(out) / record["file"]).exists():
                remove_partial(partial_of(out))
            elif old is not None and old != partial_of(out) and not out.exists():
                old.rename(out)
                sync_folder(out.absolute().parent)
    with _cut_off(out) as record:
        if record is not None:
            old = _put_aside(out, record)
            if old is not None and not (old / JOURNAL).exists():
                remove_old(old)
            for name in (JOURNAL, LOCK):
                (out / name).unlink(missing_ok=True)
            sync_folder(out)


def _put_aside(out: Path, record: dict[str, Any]) -> Path | None:
    """The old OUT, where the record says; only what we would have put there, since records may come from anybody."""
    places = (partial_of(out), out.with_name(out.name + OLD))
    old = next((place for place in places if place.name == record[CLOSING]), None)
    return old if old is not None and old.is_dir() and not old.is_symlink() and is_ours(old) else None


def is_ours(folder: Path) -> bool:
    """Whether a folder may be replaced: an output of ours, or one that holds nothing."""
    return (folder / MARK).is_file() or not any(folder.iterdir())


@contextlib.contextmanager
def _cut_off(folder: Path) -> Iterator[dict[str, Any] | None]:
    """The closing record of a folder that no process is working on any more (nor begins to meanwhile), or None."""
    with contextlib.ExitStack() as held:
        try:
            with contextlib.suppress(FileNotFoundError):
                lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                held.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(os.open(folder / JOURNAL, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as handle:
                records, _ = decode(handle.read())
        except OSError:
            records = []
        yield records[-1] if records and CLOSING in records[-1] else None
