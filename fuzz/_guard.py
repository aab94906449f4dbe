"""What no input may bring about: an error that is not ours, another file, code, a hang, memory."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from stockpot import errors

SECONDS = 1.0
"""Of processor time, for one input."""
WALL_SECONDS = 20.0
"""Of waiting, for one input, on a machine that others use too."""
TICK_SECONDS = 0.1
MEMORY_BYTES = 100_000_000
"""What one input may take: the cap of a header."""
ADDRESS_BYTES = 4 << 30
"""Of addresses beyond those in use, for the process: what asks for more fails, before the machine does."""
_HARMLESS = frozenset(
    ("object.__getattr__", "object.__setattr__", "object.__delattr__", "builtins.id", "sys._getframe", "gc.get_objects")
)
_LOOKS = frozenset(("os.listdir", "os.scandir", "os.truncate", "pathlib.Path.glob", "pathlib.Path.rglob"))
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Finding(BaseException):
    """An input did what none may; no ``except Exception`` of the product catches it."""


class Guard:
    """Stands around each execution; ``folder`` is all that may be opened, for reading unless ``writes``."""

    def __init__(self, folder: Path, *, writes: bool = False) -> None:
        self.folder = str(folder)
        self.writes = writes
        self.executions = 0
        self._is_on = False
        self._violation: str | None = None
        self._began_cpu = self._began_wall = 0.0
        inherited = _peak_bytes() > _own_peak_bytes() + MEMORY_BYTES // 10
        self._peak_bytes = _own_peak_bytes if inherited else _peak_bytes
        self._peak = self._peak_bytes()

    def install(self) -> None:
        """Watch this process from now on; it cannot be undone."""
        soft = _used_addresses() + ADDRESS_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, TICK_SECONDS, TICK_SECONDS)
        self._peak = self._peak_bytes()

    def __enter__(self) -> Guard:
        self.executions += 1
        self._violation = None
        self._began_cpu, self._began_wall = time.process_time(), time.monotonic()
        self._is_on = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._is_on = False
        if self._violation is not None:
            raise Finding(self._violation) from error
        if time.process_time() - self._began_cpu > SECONDS:
            raise Finding(f"more than {SECONDS} s of processor time") from error
        if (peak := self._peak_bytes()) > self._peak:
            taken, self._peak = peak - _resident_bytes(), peak
            if taken > MEMORY_BYTES:
                raise Finding(f"{taken} bytes of memory") from error
        if not isinstance(error, errors.StockpotError):
            return False
        line = str(error.args[0])
        if not line.isprintable():
            raise Finding(f"a message that steers the terminal: {line!r}")
        line.encode()
        return True

    def _refuse(self, what: str) -> None:
        self._violation = what
        raise Finding(what)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_on or event in _HARMLESS:
            return
        if event == "open":
            path, _, flags = arguments
            if not self._is_inside(path):
                self._refuse(f"opens {path!r}")
            if flags & _WRITING and not self.writes:
                self._refuse(f"opens {path!r} for writing")
        elif event in _LOOKS:
            if not self._is_inside(arguments[0]):
                self._refuse(f"{event} of {arguments[0]!r}")
        else:
            self._is_on = False
            self._refuse(f"{event} {arguments!r}"[:500])

    def _is_inside(self, path: object) -> bool:
        if isinstance(path, int):
            return True
        text = os.fsdecode(path) if isinstance(path, bytes) else str(path)
        return (text + "/").startswith(self.folder + "/") and ".." not in text.split("/")

    def _tick(self, number: int, frame: FrameType | None) -> None:
        if not self._is_on:
            return
        if time.process_time() - self._began_cpu > SECONDS:
            self._refuse(f"more than {SECONDS} s of processor time")
        if time.monotonic() - self._began_wall > WALL_SECONDS:
            self._refuse(f"more than {WALL_SECONDS} s")


def guarded(run: Callable[[bytes], object], guard: Guard) -> Callable[[bytes], None]:
    """``run`` under the guard: returns, or raises what no input may bring about."""

    def execute(data: bytes) -> None:
        try:
            with guard:
                run(data)
        except BaseException:
            signal.setitimer(signal.ITIMER_REAL, 0.0)  # this process ends now, its handlers first
            raise

    return execute


def _peak_bytes() -> int:
    """Quickly; it may be that of the process which started this one."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _own_peak_bytes() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


def _pages(field: int) -> int:
    with open("/proc/self/statm", "rb") as handle:
        return int(handle.read().split()[field]) * resource.getpagesize()


def _resident_bytes() -> int:
    return _pages(1)


def _used_addresses() -> int:
    return _pages(0)
