"""Real processes of the command line, watched by what they leave on disk; waiting is waiting for them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICK_SECONDS = 0.005
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Ended:
    """A process that ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def record(self) -> dict[str, Any]:
        """The one object of ``--json``."""
        found: dict[str, Any] = json.loads(self.stdout)
        return found


def command(*arguments: str | Path) -> list[str]:
    """``python -m stockpot ...``."""
    return [sys.executable, "-m", "stockpot", *map(str, arguments)]


@contextlib.contextmanager
def started(arguments: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the test."""
    slow = {**os.environ, "STOCKPOT_NATIVE": "any"}  # plain C: a merge of some 100 MB then takes a second
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=slow) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def ended(process: subprocess.Popen[str]) -> Ended:
    """Wait for the end."""
    stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    return Ended(process.returncode, stdout, stderr)


def run(arguments: Sequence[str]) -> Ended:
    """Start, and wait for the end."""
    with started(arguments) as process:
        return ended(process)


def lasts(process: subprocess.Popen[str], seconds: float) -> bool:
    """Wait that long at most; whether the process is still there."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def reaches(process: subprocess.Popen[str], condition: Callable[[], bool]) -> bool:
    """Wait until the condition holds; False if the process ended first."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if not lasts(process, TICK_SECONDS) or time.monotonic() > deadline:
            return False
    return True


def has_written(process: subprocess.Popen[str], size: int) -> bool:
    """Whether the process has handed that many bytes to the system: its progress, however fast the machine is."""
    try:
        lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(line.startswith("wchar:") and int(line.split()[1]) >= size for line in lines)


@contextlib.contextmanager
def frozen(process: subprocess.Popen[str]) -> Iterator[None]:
    """The process stands still meanwhile, holding what it holds."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def journal_lines(out: Path) -> int:
    """Lines in the journal of an output under way."""
    try:
        return (out.with_name(out.name + ".partial") / ".stockpot-journal").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
