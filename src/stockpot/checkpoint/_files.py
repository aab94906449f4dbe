"""Files of a checkpoint: identity, range reads, and a bounded pool of descriptors."""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stockpot import errors

POOL_SIZE = 128
"""Open descriptors per checkpoint at most (shards can be 10,000)."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells that a file is still the one that was opened: digest of its header, size, mtime, inode."""

    path: str
    header_digest: str
    size: int
    mtime_ns: int
    inode: int
    device: int

    def is_current(self) -> bool:
        """Whether the file on disk still looks like the one that was opened (its header is not read again)."""
        try:
            found = Path(self.path).stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns, found.st_ino) == (self.size, self.mtime_ns, self.inode)


def identity(path: Path, header_digest: str) -> FileIdentity:
    """The identity of a regular file, now."""
    found = path.stat()
    return FileIdentity(str(path), header_digest, found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev)


def require_readable(path: Path) -> int:
    """Size of a regular, readable file in bytes; the error says which of the two it is not."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for its writer when opened
            raise errors.CheckpointError("not a regular file", file=str(path))
        with path.open("rb") as handle:
            found = os.fstat(handle.fileno())
    except errors.StockpotError:
        raise
    except FileNotFoundError:
        raise errors.NotFoundError("no such file", file=str(path)) from None
    except PermissionError:
        raise errors.UnreadableError(
            "the file may not be read", file=str(path), remedy="check its permissions"
        ) from None
    except OSError as error:
        raise errors.CheckpointError(f"the file cannot be opened ({error.strerror})", file=str(path)) from None
    return found.st_size


class FilePool:
    """Range reads from numbered files, thread-safe, with at most ``POOL_SIZE`` descriptors open."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)
        self._open: OrderedDict[int, int] = OrderedDict()
        self._busy: dict[int, int] = {}
        self._lock = threading.Lock()

    def _acquire(self, file: int) -> int:
        with self._lock:
            if file not in self._open:
                while (
                    len(self._open) >= POOL_SIZE
                    and (idle := next((f for f in self._open if not self._busy.get(f)), None)) is not None
                ):
                    os.close(self._open.pop(idle))
                self._open[file] = os.open(self._paths[file], os.O_RDONLY | os.O_CLOEXEC)
            self._open.move_to_end(file)
            self._busy[file] = self._busy.get(file, 0) + 1
            return self._open[file]

    def _release(self, file: int) -> None:
        with self._lock:
            self._busy[file] -= 1

    def read_into(self, file: int, offset: int, out: memoryview) -> None:
        """Fill ``out`` from byte ``offset`` on; a file that ends early was truncated since it was opened."""
        path = self._paths[file]
        done = 0
        try:
            fd = self._acquire(file)
            try:
                while done < len(out):
                    got = os.preadv(fd, [out[done:]], offset + done)
                    if got == 0:
                        raise errors.InputChangedError("the file became shorter while it was read", file=path)
                    done += got
            finally:
                self._release(file)
        except OSError as error:
            if isinstance(error, errors.StockpotError):
                raise
            raise errors.RunError(f"reading failed ({error.strerror})", file=path, remedy="check the disk") from error

    def will_need(self, file: int, offset: int, size: int) -> None:
        """Ask the kernel to read this range ahead; a hint, without effect on results."""
        fd = self._acquire(file)
        try:
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_WILLNEED)
        finally:
            self._release(file)

    def close(self) -> None:
        """Close every descriptor."""
        with self._lock:
            for fd in self._open.values():
                os.close(fd)
            self._open.clear()
