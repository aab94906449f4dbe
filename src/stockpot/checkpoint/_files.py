"""Files of a checkpoint: identity, range reads, views of the page cache, and a bounded pool of open files."""

from __future__ import annotations

import mmap
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stockpot import errors
from stockpot.checkpoint._descriptors import FEWEST, MOST, Descriptors, opened, register, runs_short


def is_inside(name: str) -> bool:
    """Whether a relative name stays in its folder, on every system.

    >>> is_inside("unet/model.safetensors"), is_inside("../model"), is_inside("/model"), is_inside("..\\\\model")
    (True, False, False, False)
    """
    return (not PurePosixPath(name).parts or is_below(name)) and "\\" not in name


def is_below(name: str) -> bool:
    """Whether a name is that of something in a folder, on this system.

    >>> is_below("unet/model.safetensors"), is_below("a\\\\b"), is_below(""), is_below("a/../..")
    (True, True, False, False)
    """
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


class View(NamedTuple):
    """Bytes of a file where the page cache holds them, and their address: nothing is copied.

    Touching what was cut off the file since raises SIGBUS; the kernels survive that (``kernels.catching_lost_pages``),
    numpy and torch do not.
    """

    data: NDArray[np.uint8]
    address: int


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells that a file is still the one that was opened: digest of its header, size, mtime, inode."""

    path: str
    header_digest: str
    size: int
    mtime_ns: int
    inode: int
    device: int
    ctime_ns: int = 0
    """Tells of writing that put size and mtime back; it changes with names and rights too, so a merge under way asks
    the others only."""

    def is_current(self) -> bool:
        """Whether the file on disk still looks like the one that was opened (its header is not read again); of a commit
        on a hub it always does."""
        if not self.inode:
            return True
        try:
            found = Path(self.path).stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns, found.st_ino) == (self.size, self.mtime_ns, self.inode)


def identity(path: Path, header_digest: str) -> FileIdentity:
    """The identity of a regular file, now."""
    found = path.stat()
    kept = (found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev, found.st_ctime_ns)
    return FileIdentity(str(path), header_digest, *kept)


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


@dataclass(frozen=True, slots=True)
class _Mapped:
    """A file in our address space; unmapped when the last view of it is gone."""

    file: mmap.mmap
    data: NDArray[np.uint8]
    address: int


class FilePool:
    """Range reads from numbered files, thread-safe, with at most ``MOST`` descriptors open and files mapped."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)
        self._descriptors = Descriptors[int](self._paths.__getitem__, os.O_RDONLY)
        self._mapped: OrderedDict[int, _Mapped | None] = OrderedDict()
        self._lock = threading.Lock()
        register(self)

    def read_into(self, file: int, offset: int, out: memoryview) -> None:
        """Fill ``out`` from byte ``offset`` on; a file that ends early was truncated since it was opened."""
        path = self._paths[file]
        done = 0
        try:
            with self._descriptors.use(file) as fd:
                while done < len(out):
                    got = os.preadv(fd, [out[done:]], offset + done)
                    if got == 0:
                        raise errors.InputChangedError("the file became shorter while it was read", file=path)
                    done += got
        except OSError as error:
            if isinstance(error, errors.StockpotError):
                raise
            raise errors.RunError(f"reading failed ({error.strerror})", file=path, remedy="check the disk") from error

    def view(self, file: int, offset: int, size: int) -> View | None:
        """Bytes from ``offset`` on without a copy; None where the file cannot be mapped, or has become shorter."""
        found = self._map(file)
        if found is None or offset < 0 or found.data.size < offset + size:
            return None
        return View(found.data[offset : offset + size], found.address + offset)

    def _map(self, file: int) -> _Mapped | None:
        with self._lock:
            if file in self._mapped:
                self._mapped.move_to_end(file)
                return self._mapped[file]
        if runs_short():
            self._forget(FEWEST)
            return None
        found = None
        try:
            fd = opened(self._paths[file], os.O_RDONLY)
            try:
                mapped = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)  # keeps a descriptor of its own
            finally:
                os.close(fd)
            data = np.frombuffer(mapped, dtype=np.uint8)
            found = _Mapped(mapped, data, data.ctypes.data)
        except (OSError, ValueError):  # a file system without mappings, an address limit, an empty file
            pass
        self._forget(MOST)
        with self._lock:
            return self._mapped.setdefault(file, found)

    def _forget(self, most: int) -> None:
        """Let the longest unused mappings go but for so many; they end with their last view."""
        with self._lock:
            while len(self._mapped) >= most:
                self._mapped.popitem(last=False)

    def held(self) -> int:
        """Mapped files: each has a descriptor."""
        return len(self._mapped)

    def give_up(self) -> None:
        """Let every mapping go."""
        self._forget(1)

    def drop_view(self, file: int, offset: int, size: int) -> None:
        """Take a viewed range out of this process's resident memory; another look at it is still right."""
        with self._lock:
            found = self._mapped.get(file)
        if found is not None and 0 <= offset < found.data.size:
            start = offset // mmap.PAGESIZE * mmap.PAGESIZE
            found.file.madvise(mmap.MADV_DONTNEED, start, offset + size - start)

    def close(self) -> None:
        """Close every descriptor; mappings go with their last view."""
        with self._lock:
            self._mapped.clear()
        self._descriptors.close()

    def __del__(self) -> None:
        self.close()
