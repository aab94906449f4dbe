"""A target in a process of its own: what it did, and what it found."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MEMORY = Path("/dev/shm")
"""Files there never meet a disk."""


@dataclass(frozen=True)
class Session:
    """How often a target was run, in how much time, how many branches and combinations of them were seen.

    ``finding`` is the file of the input that ended it, and ``said`` the last that the process printed.
    """

    target: str
    executions: int
    seconds: float
    branches: int
    features: int
    peak_megabytes: int
    finding: str | None
    said: str


def session(
    target: str,
    findings: Path,
    *,
    runs: int | None = None,
    seconds: int | None = None,
    seed: int = 0,
    is_watched: bool = True,
    corpus: Path | None = None,
) -> Session:
    """Fuzz one target for so many runs or so long; a seed of 0 is a new one each time.

    ``corpus``: a folder of inputs to go on from, which keeps those that led to something new.
    """
    findings.mkdir(parents=True, exist_ok=True)
    options = [f"-artifact_prefix={findings}/{target}-", f"-seed={seed}"]
    options += [] if runs is None else [f"-runs={runs}"]
    options += [] if seconds is None else [f"-max_total_time={seconds}"]
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None, prefix="fuzz-") as room:
        command = [sys.executable, "-m", "fuzz._engine", target, room, "watched" if is_watched else "blind", *options]
        if corpus is not None:
            corpus.mkdir(parents=True, exist_ok=True)
            command.append(str(corpus))
        began = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        spent = time.monotonic() - began
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode and "Test unit written to" not in said:
        raise RuntimeError(f"the fuzzer itself failed (exit {done.returncode}):\n{said[-3000:]}")
    written = re.findall(r"Test unit written to (\S+)", said)
    seen = re.findall(r"cov: (\d+) ft: (\d+)", said) or [("0", "0")]
    peak = re.search(r"stat::peak_rss_mb:\s*(\d+)", said)
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", said)
    count = int(executed[1]) if executed else max([int(n) for n in re.findall(r"^#(\d+)", said, re.M)], default=0)
    branches, features = map(int, seen[-1])
    return Session(
        target, count, round(spent, 1), branches, features, int(peak[1]) if peak else 0,
        written[-1] if written else None, said[-6000:],
    )  # fmt: skip
