"""``python -m fuzz``: some targets or all, for so many runs or so long; exit 1 after a finding."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fuzz import _campaign
from fuzz._catalogue import PLACES
from fuzz._session import session

FINDINGS = Path("fuzz-findings")
START_SECONDS = 2
"""Of a process, before its first input."""


def main() -> int:
    """Run what was asked for, one target after the other."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(PLACES)}; all if none is named")
    parser.add_argument("--runs", type=int, help="inputs for each target")
    parser.add_argument("--seconds", type=int, help="time in all, shared by the targets")
    parser.add_argument("--campaign", action="store_true", help="as often as is recorded, and record it")
    parser.add_argument("--self-test", action="store_true", help="find a planted bug, by its coverage alone")
    parser.add_argument("--findings", type=Path, default=FINDINGS, help="where inputs that are findings are written")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(PLACES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    names = given.targets or list(PLACES)
    if given.self_test:
        return _campaign.self_test(given.findings)
    if given.campaign:
        return _campaign.campaign(names, given.findings)
    end = None if given.seconds is None else time.monotonic() + given.seconds
    found = 0
    for place, name in enumerate(names):
        each = None if end is None else max(1, int((end - time.monotonic()) / (len(names) - place) - START_SECONDS))
        done = session(name, given.findings, runs=given.runs, seconds=each)
        rate = done.executions / max(done.seconds, 1e-9)
        print(f"{name}: {done.executions} runs, {rate:.0f}/s, {done.branches} branches", flush=True)
        if done.finding is not None:
            found += 1
            print(f"FINDING: {done.finding}\n{done.said}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
