"""How a finished OUT.partial becomes OUT, and how the next run mends what was cut off meanwhile.

Each step is on disk before the next one begins. Before the first, the journal says which old OUT will be put where: it
is ours to remove afterwards, or to put back; anything else under such a name is the user's, and so is what came to lie
at OUT meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import xxhash

from stockpot import errors
from stockpot.checkpoint._descriptors import opened
from stockpot.checkpoint._journal import CLOSING, decode, opened_journal

JOURNAL = ".stockpot-journal"
LOCK = ".stockpot-lock"
MARK = "stockpot.json"
OWN_PREFIX = "stockpot_"
"""What our own files beside the weights are called."""
_NO_FLAG = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
PARTIAL, OLD = ".partial", ".old"
_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2
_NO_SYNC = (errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.EROFS)
"""What systems say that cannot sync a folder, or not this one: then there is nothing to wait for."""


def partial_of(out: Path) -> Path:
    """Where OUT is staged."""
    return out.with_name(out.name + PARTIAL)


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


Place = tuple[int, int]
"""What tells a file or folder from all others: device and inode."""


def place_of(path: Path) -> Place | None:
    """Of what lies there, a link itself; None where there is nothing."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def empty(folder: Path, kept: Collection[str] = (JOURNAL, LOCK)) -> None:
    """Remove what a folder of ours holds, but what says that it is ours: of a partial its journal and lock."""
    for entry in folder.iterdir():
        if entry.name not in kept:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    sync_folder(folder)


def remove_old(folder: Path) -> None:
    """Remove an old OUT; as long as anything is there, so is what says that it was ours."""
    empty(folder, (MARK,))
    (folder / MARK).unlink(missing_ok=True)
    folder.rmdir()
    sync_folder(folder.absolute().parent)


def remove_partial(folder: Path) -> None:
    """Remove all of a partial."""
    empty(folder)
    unmark(folder)
    folder.rmdir()


def unmark(folder: Path) -> None:
    """Remove what makes a folder an unfinished output."""
    for name in (JOURNAL, LOCK):
        (folder / name).unlink(missing_ok=True)


def is_ours(folder: Path) -> bool:
    """Whether a folder may be replaced: an output of ours, or one that holds nothing."""
    return (folder / MARK).is_file() or not any(folder.iterdir())


def mark_of(folder: Path) -> str:
    """What tells an output of ours from others, wherever it lies: its provenance's digest; "" of an empty folder."""
    mark = folder / MARK
    return xxhash.xxh3_128_hexdigest(mark.read_bytes()) if mark.is_file() else ""


def replace(source: Path, out: Path, expected: Place | None, close: Callable[[str, str], None]) -> None:
    """Rename to OUT, in place of the old OUT that was ``expected`` there, which is then removed.

    ``close`` puts the closing record on disk: the name under which the old OUT lies meanwhile, and its mark. RunError
    where something else lies at OUT by now.
    """
    old = out.with_name(out.name + OLD)
    found = place_of(out)
    if found not in (None, expected):
        raise _taken(out)
    aside = source if found is not None and out.is_dir() else None
    mark = mark_of(out) if aside else ""
    close(aside.name if aside else "", mark)
    if found is None:
        _rename_new(source, out)
    elif aside is None:
        source.replace(out)
    elif exchange(source, out):
        if place_of(source) != expected:
            exchange(source, out)
            raise _taken(out)
    else:
        if old.exists() or old.is_symlink():
            raise errors.RunError(
                "something lies where the old output would be put meanwhile",
                file=str(old),
                remedy="move it away, then run the same command: it goes on",
            )
        aside = old
        close(aside.name, mark)
        out.rename(aside)
        source.rename(out)
    sync_folder(out.absolute().parent)
    if aside is not None:
        remove_old(aside)


def _taken(out: Path) -> errors.RunError:
    return errors.RunError(
        "something else was put where the output goes, while it was written",
        file=str(out),
        remedy="move it away, then run the same command: it goes on",
    )


def _rename_new(source: Path, out: Path) -> None:
    """Rename to a name that is free, in one step where the system can."""
    try:
        if not _renameat2(source, out, _RENAME_NOREPLACE):
            if place_of(out) is not None:
                raise _taken(out)
            source.rename(out)
    except FileExistsError:
        raise _taken(out) from None


def exchange(source: Path, out: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    return _renameat2(source, out, _RENAME_EXCHANGE)


def _renameat2(source: Path, out: Path, flag: int) -> bool:
    """Swap two names, or rename to a free one, in one step; False where system or disk cannot (it is Linux's)."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(out), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_FLAG:
        return False
    raise OSError(code, os.strerror(code), str(out))


def repair(out: Path) -> None:
    """Mend what was cut off while OUT was renamed: an old OUT that was put aside comes back where the new one is not
    there yet, and is removed where it is."""
    with _cut_off(partial_of(out)) as record:
        if record is not None:
            old = _put_aside(out, record)
            if out.is_file() and record["file"] and place_of(partial_of(out) / record["file"]) is None:
                _remove_rest(partial_of(out))
            elif old is not None and old != partial_of(out) and not out.exists():
                old.rename(out)
                sync_folder(out.absolute().parent)
    with _cut_off(out) as record:
        if record is not None:
            old = _put_aside(out, record)
            if old is not None and not (old / JOURNAL).exists():
                remove_old(old)
            unmark(out)
            sync_folder(out)


def _remove_rest(folder: Path) -> None:
    """Remove what is left of a partial whose one file is OUT; what we do not make stays."""
    for entry in folder.glob(f"{OWN_PREFIX}*"):
        entry.unlink()
    sync_folder(folder)
    unmark(folder)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _put_aside(out: Path, record: dict[str, Any]) -> Path | None:
    """The old OUT, where the record says, if it is the one of the record: records may come from anybody."""
    places = (partial_of(out), out.with_name(out.name + OLD))
    old = next((place for place in places if place.name == record[CLOSING]), None)
    if old is None or not old.is_dir() or old.is_symlink() or not is_ours(old):
        return None
    return old if mark_of(old) == record["old"] else None


@contextlib.contextmanager
def _cut_off(folder: Path) -> Iterator[dict[str, Any] | None]:
    """The closing record of a folder that no process is working on any more (nor begins to meanwhile), or None."""
    with contextlib.ExitStack() as held:
        try:
            with contextlib.suppress(FileNotFoundError):
                lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                held.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(opened_journal(folder / JOURNAL, os.O_RDONLY), "rb") as handle:
                records, _ = decode(handle.read())
        except OSError:
            records = []
        yield records[-1] if records and CLOSING in records[-1] else None
