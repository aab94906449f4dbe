"""Campaigns: every target as often as is promised, with the numbers written down; and the proof that it can find."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report

from fuzz._catalogue import PLANTED
from fuzz._session import session

RESULTS = Path("benchmarks/results/safety/fuzz.json")
RUNS = {
    "header": 6_500_000,
    "index": 3_600_000,
    "folder": 900_000,
    "shards": 100_000,
    "config": 100_000,
    "recipe": 1_000_000,
    "pickle": 200_000,
    "archive": 100_000,
    "legacy": 100_000,
    "dcp": 100_000,
    "journal": 100_000,
    "adapter": 100_000,
    "provenance": 20_000,
}
MENDED = Path("tests/safety/findings")
PIECE = 100_000
"""Runs of one process: results are written after each."""
PLANTED_RUNS = 200_000


def campaign(names: Sequence[str], findings: Path) -> int:
    """Run each target as often as ``RUNS`` says, less what is recorded; 1 after a finding."""
    targets = json.loads(RESULTS.read_text("utf-8"))["targets"] if RESULTS.exists() else {}
    for name in names:
        while (left := RUNS[name] - targets.get(name, {}).get("executions", 0)) > 0:
            done = session(name, findings, runs=min(left, PIECE), corpus=findings / "corpus" / name)
            if done.finding is not None:
                print(f"FINDING: {done.finding}\n{done.said}", file=sys.stderr)
                return 1
            before = targets.get(name, {"executions": 0, "seconds": 0.0})
            targets[name] = {
                "executions": before["executions"] + done.executions,
                "seconds": round(before["seconds"] + done.seconds, 1),
                "branches": max(before.get("branches", 0), done.branches),
                "features": max(before.get("features", 0), done.features),
                "peak_megabytes": max(before.get("peak_megabytes", 0), done.peak_megabytes),
            }
            targets[name]["executions_per_second"] = round(targets[name]["executions"] / targets[name]["seconds"])
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            mended = sorted(path.name for path in MENDED.iterdir())
            seconds = round(sum(one["seconds"] for one in targets.values()), 1)
            content = {"machine": report.machine(), "seconds": seconds, "targets": targets, "found_and_mended": mended}
            RESULTS.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
            print(name, targets[name], flush=True)
    return 0


def self_test(findings: Path) -> int:
    """A planted bug is found by what is watched, and not without; 1 if it is otherwise."""
    watched, blind = (
        session(PLANTED, findings, runs=PLANTED_RUNS, seed=1, is_watched=is_watched) for is_watched in (True, False)
    )
    print(f"watched: {watched.executions} runs, {'found' if watched.finding else 'not found'}")
    print(f"blind: {blind.executions} runs, {'found' if blind.finding else 'not found'}")
    return 0 if watched.finding and not blind.finding else 1
