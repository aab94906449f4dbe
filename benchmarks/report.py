"""Measured rounds -> medians, ratios, limits; a JSON file and a table."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.cases import Case
from benchmarks.measure import Measurement

REPORTED = ("seconds", "bytes_read", "bytes_written", "peak_memory_bytes", "tensors")


@dataclass(frozen=True)
class Round:
    """What ran, one right after the other, on the same inputs; by name, the floor first.

    ``load`` is the machine's load average over the last minute, before the round.
    """

    runs: Mapping[str, Measurement]
    load: float

    def times(self, which: str, of: str) -> float:
        """The wall time of one in units of another's."""
        return self.runs[which].wall_seconds / self.runs[of].wall_seconds


@dataclass(frozen=True)
class Result:
    """All rounds of one case; ``warm_up`` is recorded and not counted."""

    name: str
    case: Case
    fits_memory: bool
    input_bytes: int
    output_bytes: int
    warm_up: Round
    rounds: tuple[Round, ...]

    @property
    def ratio(self) -> float:
        """The median over rounds of stockpot's time over the floor's."""
        return median(each.times("stockpot", "floor") for each in self.rounds)

    @property
    def mergekit_ratio(self) -> float | None:
        """The median over rounds of mergekit's time over stockpot's."""
        if "mergekit" not in self.rounds[0].runs:
            return None
        return median(each.times("mergekit", "stockpot") for each in self.rounds)

    @property
    def peak_rss_bytes(self) -> int:
        """Stockpot's highest peak over the rounds."""
        return max(each.runs["stockpot"].peak_rss_bytes for each in self.rounds)

    def seconds(self, which: str) -> float:
        """Median wall time."""
        return median(each.runs[which].wall_seconds for each in self.rounds)

    def limits(self) -> dict[str, dict[str, Any]]:
        """Each limit with the value found, and whether it is kept."""
        found: dict[str, dict[str, Any]] = {}
        if self.case.ratio is not None:
            found["ratio"] = {"limit": self.case.ratio, "value": self.ratio, "kept": self.ratio <= self.case.ratio}
        if self.case.peak is not None:
            kept = self.peak_rss_bytes <= self.case.peak
            found["peak_rss_bytes"] = {"limit": self.case.peak, "value": self.peak_rss_bytes, "kept": kept}
        if self.mergekit_ratio is not None:
            kept = self.mergekit_ratio >= self.case.mergekit_ratio
            found["times_faster_than_mergekit"] = {
                "limit": self.case.mergekit_ratio, "value": self.mergekit_ratio, "kept": kept
            }  # fmt: skip
        return found


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


def record(result: Result, places: Mapping[str, str]) -> dict[str, Any]:
    """A result as plain data; ``places`` maps paths in the commands to short names."""

    def command(measured: Measurement) -> str:
        text = " ".join(measured.command)
        for path in sorted(places, key=len, reverse=True):
            text = text.replace(path, places[path])
        return text

    def data(each: Round) -> dict[str, Any]:
        runs = {which: raw(run, keep=() if which == "floor" else REPORTED) for which, run in each.runs.items()}
        return {"load": each.load, "ratio": each.times("stockpot", "floor"), "runs": runs}

    return {
        "name": result.name,
        "machine": machine(),
        "cache": "cold" if result.case.cold else "warm" if result.fits_memory else "as it comes",
        "entry": result.case.entry,
        "scale": result.case.scale,
        "inputs": result.case.fine_tunes + result.case.base,
        "input_bytes": result.input_bytes,
        "output_bytes": result.output_bytes,
        "floor_reads": result.case.reads,
        "commands": {which: command(run) for which, run in result.rounds[0].runs.items()},
        "seconds_median": {which: result.seconds(which) for which in result.rounds[0].runs},
        "ratio_median": result.ratio,
        "mergekit_ratio_median": result.mergekit_ratio,
        "peak_rss_bytes": result.peak_rss_bytes,
        "limits": result.limits(),
        "warm_up": data(result.warm_up),
        "rounds": [data(each) for each in result.rounds],
    }


def store(result: Result, places: Mapping[str, str], folder: Path) -> None:
    """Write the record as ``NAME.json``."""
    (folder / f"{result.name}.json").write_text(json.dumps(record(result, places), indent=2) + "\n")


def show(console: Console, result: Result) -> None:
    """Print one result as a table, and its limits."""
    sizes = f"{result.input_bytes / 1e9:.2f} GB in, {result.output_bytes / 1e9:.2f} out"
    table = Table(title=f"{result.name} ({sizes}, {'cold' if result.case.cold else 'warm'} cache)")
    for heading in ("median of rounds", "wall s", "cpu s", "peak RSS MB", "times the floor"):
        table.add_column(heading, justify="left" if "median" in heading else "right")
    for which in result.rounds[0].runs:
        runs = [each.runs[which] for each in result.rounds]
        table.add_row(
            which,
            f"{result.seconds(which):.2f}",
            f"{median(run.cpu_seconds for run in runs):.2f}",
            f"{median(run.peak_rss_bytes for run in runs) / 1e6:.0f}",
            f"{median(each.times(which, 'floor') for each in result.rounds):.2f}",
        )
    console.print(table)
    ratios = ", ".join(f"{each.times('stockpot', 'floor'):.2f}" for each in result.rounds)
    console.print(f"ratios of the rounds: {ratios}", highlight=False)
    for name, limit in result.limits().items():
        met = "kept" if limit["kept"] else "NOT KEPT"
        console.print(f"{name}: {limit['value']:.4g}, limit {limit['limit']:.4g}: {met}", highlight=False)
    if not (result.fits_memory or result.case.cold):
        console.print("inputs and output exceed free memory: the cache was not warm")
