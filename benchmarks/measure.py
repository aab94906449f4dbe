"""One command as a whole process: wall time, processor time, peak memory."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.floor import CHUNK_BYTES, read_files


@dataclass(frozen=True)
class Measurement:
    """What one process cost.

    ``peak_rss_bytes`` is the kernel's high-water mark of the largest single process
    (the command or a child that it waited for). The kernel starts that mark at the
    resident size of the process that launched the command, which is why the
    benchmark program itself imports neither torch nor numpy.
    """

    command: tuple[str, ...]
    exit_code: int
    wall_seconds: float
    user_seconds: float
    system_seconds: float
    peak_rss_bytes: int
    stdout: str
    stderr: str

    @property
    def cpu_seconds(self) -> float:
        """User and system time together, over all threads."""
        return self.user_seconds + self.system_seconds


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def warm(files: Iterable[Path]) -> None:
    """Read the files, so that the page cache holds them as far as it has room."""
    read_files(files, bytearray(CHUNK_BYTES))


def drop(files: Iterable[Path]) -> None:
    """Ask the kernel to drop the files from the page cache.

    Dirty pages cannot be dropped, so each file is synced first. A disk below (a
    virtual machine's host, a controller) may still hold the bytes in its own cache.
    """
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def run(command: Sequence[str], *, outputs: Iterable[Path]) -> Measurement:
    """Run a command to its end and measure it.

    ``outputs`` are deleted and all file systems synced before the clock starts, so
    that neither dirty pages nor freed blocks of an earlier run count against this
    one. A non-zero exit is data here, not an exception.
    """
    for path in outputs:
        remove(path)
    os.sync()
    # An installed program has its bytecode; some build machines forbid writing it.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        wall_seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        return Measurement(
            command=tuple(command),
            exit_code=process.returncode,
            wall_seconds=wall_seconds,
            user_seconds=usage.ru_utime,
            system_seconds=usage.ru_stime,
            peak_rss_bytes=usage.ru_maxrss * 1024,
            stdout=stdout.read().decode(errors="replace"),
            stderr=stderr.read().decode(errors="replace"),
        )
