"""Many files, few descriptors: systems allow a process as few as 256."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, Protocol, TypeVar

MOST = 128
"""Files that one holder keeps open (shards can be 10,000)."""
FEWEST = 4
"""What it keeps where the process runs short of descriptors."""
SHARE = 0.5
"""Of the process's descriptors, what all holders may have before they keep few."""
Key = TypeVar("Key")


class Holder(Protocol):
    """What holds descriptors that it can do without."""

    def held(self) -> int:
        """How many."""

    def give_up(self) -> None:
        """Close those that nobody uses now."""


_holders: weakref.WeakSet[Holder] = weakref.WeakSet()
_holders_lock = threading.Lock()
"""Descriptors are the process's: who runs out of them asks everybody."""


def register(holder: Holder) -> None:
    """Count a holder, as long as it lives."""
    with _holders_lock:
        _holders.add(holder)


def _everybody() -> list[Holder]:
    with _holders_lock:
        return list(_holders)


def runs_short() -> bool:
    """Whether the holders have their share of the process's descriptors."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit != resource.RLIM_INFINITY and sum(holder.held() for holder in _everybody()) >= SHARE * limit


def opened(path: str | Path, flags: int) -> int:
    """A new descriptor; where the process has no more, the holders give theirs up first."""
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
    for holder in _everybody():
        holder.give_up()
    return os.open(path, flags | os.O_CLOEXEC, 0o666)


class Descriptors(Generic[Key]):
    """Files by key, opened where they are needed, the longest unused ones closed; thread-safe.

    ``before_close`` is called with a descriptor that is about to be closed to make room.
    """

    def __init__(
        self, path_of: Callable[[Key], str | Path], flags: int, before_close: Callable[[int], object] | None = None
    ) -> None:
        self._path_of = path_of
        self._flags = flags
        self._before_close = before_close
        self._open: OrderedDict[Key, int] = OrderedDict()
        self._busy: dict[Key, int] = {}
        self._lock = threading.Lock()
        register(self)

    @contextlib.contextmanager
    def use(self, key: Key) -> Iterator[int]:
        """The file's descriptor, open as long as this lasts."""
        found = self._take(key)
        if found is None:
            fresh = opened(self._path_of(key), self._flags)
            try:
                self._make_room(FEWEST if runs_short() else MOST)
            except OSError:
                os.close(fresh)
                raise
            with self._lock:
                found = self._open.setdefault(key, fresh)
                self._busy[key] = self._busy.get(key, 0) + 1
            if found != fresh:  # another thread was faster
                os.close(fresh)
        try:
            yield found
        finally:
            with self._lock:
                self._busy[key] -= 1

    def _take(self, key: Key) -> int | None:
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                self._busy[key] = self._busy.get(key, 0) + 1
            return self._open.get(key)

    def _make_room(self, most: int) -> None:
        """Close the longest unused files but for so many."""
        with self._lock:
            while len(self._open) >= most:
                idle = next((key for key in self._open if not self._busy.get(key)), None)
                if idle is None:
                    return
                if self._before_close is not None:
                    self._before_close(self._open[idle])
                os.close(self._open.pop(idle))

    def held(self) -> int:
        """Files that are open."""
        return len(self._open)

    def give_up(self) -> None:
        """Close every file that is not in use."""
        self._make_room(1)

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            for found in self._open.values():
                os.close(found)
            self._open.clear()
