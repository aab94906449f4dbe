"""Measured rounds -> medians, ratios, targets; a JSON file and a table."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Measurement

RATIO_TARGET = 2.0
PEAK_RSS_TARGET_BYTES = 700_000_000
REPORTED = ("seconds", "bytes_read", "bytes_written", "peak_memory_bytes", "tensors")


@dataclass(frozen=True)
class Round:
    """The floor and, right after it, the subject; both on the same inputs.

    ``load`` is the machine's load average over the last minute, before the round.
    """

    floor: Measurement
    subject: Measurement
    load: float

    @property
    def ratio(self) -> float:
        """The subject's wall time in units of the floor's."""
        return self.subject.wall_seconds / self.floor.wall_seconds


@dataclass(frozen=True)
class Result:
    """All rounds of one benchmark; ``warm_up`` is recorded and not counted."""

    name: str
    subject: str
    cache: str
    fits_memory: bool
    input_bytes: int
    output_bytes: int
    warm_up: Round
    rounds: tuple[Round, ...]

    @property
    def ratio(self) -> float:
        """The median over rounds of subject time over floor time."""
        return median(each.ratio for each in self.rounds)

    @property
    def peak_rss_bytes(self) -> int:
        """The subject's highest peak over the rounds."""
        return max(each.subject.peak_rss_bytes for each in self.rounds)

    def targets(self) -> dict[str, dict[str, Any]]:
        """Each target with its limit, the value found, and whether it is met."""
        found = {
            "ratio": (self.ratio, RATIO_TARGET),
            "peak_rss_bytes": (self.peak_rss_bytes, PEAK_RSS_TARGET_BYTES),
        }
        return {name: {"limit": limit, "value": value, "met": value <= limit} for name, (value, limit) in found.items()}


def package_version(name: str) -> str | None:
    """The installed version of a package, or None; nothing is imported."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def field(path: str, label: str) -> str:
    """The first ``label: value`` of a file under /proc, or an empty string."""
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == label:
            return value.strip()
    return ""


def memory_bytes(label: str) -> int:
    """A line of /proc/meminfo (``MemTotal``, ``MemAvailable``) in bytes."""
    return int(field("/proc/meminfo", label).split()[0]) * 1024


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    return {
        "cpu": field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes("MemTotal"),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": package_version("torch"),
        "stockpot": package_version("stockpot"),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def last_object(text: str) -> dict[str, Any]:
    """The JSON object that a command printed; empty if it printed something else."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def raw(measured: Measurement, *, keep: Sequence[str] = ()) -> dict[str, Any]:
    """One run as plain data, with the ``keep`` fields of what it printed (all if ())."""
    printed = last_object(measured.stdout)
    return {
        "wall_seconds": measured.wall_seconds,
        "user_seconds": measured.user_seconds,
        "system_seconds": measured.system_seconds,
        "peak_rss_bytes": measured.peak_rss_bytes,
        "reported": {k: v for k, v in printed.items() if not keep or k in keep},
    }


def record(result: Result, places: dict[str, str]) -> dict[str, Any]:
    """A result as plain data; ``places`` maps paths in the commands to short names."""

    def command(measured: Measurement) -> str:
        text = " ".join(measured.command)
        for path in sorted(places, key=len, reverse=True):
            text = text.replace(path, places[path])
        return text

    def pair(each: Round) -> dict[str, Any]:
        return {
            "load": each.load,
            "ratio": each.ratio,
            "floor": raw(each.floor),
            "subject": raw(each.subject, keep=REPORTED),
        }

    return {
        "name": result.name,
        "machine": machine(),
        "subject": result.subject,
        "cache": result.cache,
        "fits_memory": result.fits_memory,
        "input_bytes": result.input_bytes,
        "output_bytes": result.output_bytes,
        "floor_command": command(result.warm_up.floor),
        "subject_command": command(result.warm_up.subject),
        "ratio_median": result.ratio,
        "targets": result.targets(),
        "warm_up": pair(result.warm_up),
        "rounds": [pair(each) for each in result.rounds],
    }


def show(console: Console, result: Result) -> None:
    """Print one result as a table and its targets as two lines."""
    sizes = f"{result.input_bytes / 1e9:.2f} GB in, {result.output_bytes / 1e9:.2f} out"
    table = Table(title=f"{result.name} ({sizes}, {result.cache} cache)")
    for heading in ("median of rounds", "wall s", "cpu s", "peak RSS MB", "ratio"):
        table.add_column(heading, justify="left" if "median" in heading else "right")
    for label, runs, ratio in (
        ("floor", [each.floor for each in result.rounds], "1.00"),
        (result.subject, [each.subject for each in result.rounds], f"{result.ratio:.2f}"),
    ):
        table.add_row(
            label,
            f"{median(run.wall_seconds for run in runs):.2f}",
            f"{median(run.cpu_seconds for run in runs):.2f}",
            f"{median(run.peak_rss_bytes for run in runs) / 1e6:.0f}",
            ratio,
        )
    console.print(table)
    ratios = ", ".join(f"{each.ratio:.2f}" for each in result.rounds)
    console.print(f"ratios of the rounds: {ratios}", highlight=False)
    met = {True: "met", False: "not met"}
    ratio_met, rss_met = (target["met"] for target in result.targets().values())
    console.print(
        f"ratio {result.ratio:.2f} <= {RATIO_TARGET:.1f}: {met[ratio_met]}\n"
        f"peak RSS {result.peak_rss_bytes / 1e6:.0f} MB <= "
        f"{PEAK_RSS_TARGET_BYTES / 1e6:.0f} MB: {met[rss_met]}",
        highlight=False,
    )
    if not result.fits_memory:
        console.print("inputs and output exceed free memory: the cache was not warm")
