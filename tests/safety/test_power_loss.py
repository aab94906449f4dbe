"""A power loss at any moment: OUT is absent, the old one, or whole; the same command finishes with the same bytes."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from stockpot.checkpoint import repair

from ._jobs import (
    Job,
    made_of,
    old_output,
    others_partial,
    own_partial,
    own_partial_without_weights,
    undisturbed,
    without_syncing,
    write_inputs,
)
from ._layer import Call, Layer, calls
from ._power import MODES, Disk
from .conftest import Campaign

STATES, STATES_IN_SOAK = 8, 150
"""For each of the jobs."""

JOBS = {
    "folder": lambda inputs: Job(inputs, "out"),
    "folder in folders that it makes": lambda inputs: Job(inputs, "out", where="a/b"),
    "one safetensors file": lambda inputs: Job(inputs, "out.safetensors"),
    "one pickle": lambda inputs: Job(inputs, "out.pt"),
    "in place of an old folder": lambda inputs: Job(inputs, "out", ("--overwrite",), old_output),
    "in place of an old folder, by two renames": lambda inputs: Job(inputs, "out", ("--overwrite",), old_output),
    "in place of an old file": lambda inputs: Job(inputs, "out.safetensors", ("--overwrite",), old_output),
    "in place of another's partial": lambda inputs: Job(inputs, "out", ("--overwrite",), others_partial),
    "continued": lambda inputs: Job(inputs, "out", (), own_partial),
    "continued from half": lambda inputs: Job(inputs, "out", (), own_partial_without_weights),
    "started over": lambda inputs: Job(inputs, "out", ("--no-resume",), own_partial),
}
RULES = {"in place of an old folder, by two renames": "exchange:0:22"}
"""22, EINVAL: what a file system says that cannot exchange two names."""


@dataclass(frozen=True)
class Recorded:
    """One undisturbed run: what lay there before, what was done to it, and what it made."""

    disk: Disk
    calls: Sequence[Call]
    expected: dict[str, bytes]
    old: dict[str, bytes] | None


def recorded(case: str, job: Job, layer: Layer, root: Path) -> Recorded:
    """Run the job under the layer. What was recorded makes the same files again, or nothing here means anything."""
    expected = undisturbed(job, root / "straight")
    place = root / "place"
    place.mkdir()
    job.before(job, place)
    old = made_of(job.out(place)) if job.out(place).exists() else None
    disk = Disk(place)
    rules = [RULES[case]] if case in RULES else []
    environment = layer.environment(place, *rules, log=root / "log", slow_microseconds=2000, syncs=False)
    command = job.command(place, "--workers", "2", often=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = calls(root / "log")
    again = disk.after(found, "all", random.Random(0)).files()
    there = {
        str(entry.relative_to(place)): entry.read_bytes() if entry.is_file() else None for entry in place.rglob("*")
    }
    assert again == there, "the record is not all that was done"
    assert job.state(place, expected) == "whole"
    return Recorded(disk, found, expected, old)


def moments(found: Sequence[Call], number: int, choose: random.Random) -> list[int]:
    """Numbers of calls that were made before the power was lost: the end, where exit 0 was told, and around renames."""
    renames = [place for place, call in enumerate(found) if call.name in ("rename", "exchange")]
    near = [place + choose.randrange(4) for place in renames for _ in range(number // 8)]
    somewhere = [choose.randrange(len(found) + 1) for _ in range(number)]
    return [min(moment, len(found)) for moment in ([len(found)] * 2 + near + somewhere)[:number]]


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Layer:
    """The layer between the program and its files."""
    return Layer.build(tmp_path_factory.mktemp("layer"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What is merged."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def facts() -> dict[str, dict[str, object]]:
    """What was seen of each job."""
    return {}


@pytest.mark.parametrize("case", JOBS)
def test_power_lost_at_any_moment(
    case: str,
    layer: Layer,
    inputs: list[Path],
    facts: dict[str, dict[str, object]],
    campaign: Campaign,
    tmp_path: Path,
) -> None:
    """Whatever of the unsynced names and bytes is on disk: never half an OUT, no byte trusted that is not there."""
    job = JOBS[case](inputs)
    run = recorded(case, job, layer, tmp_path)
    with without_syncing():
        facts[case] = lose_power(case, job, run, tmp_path, campaign.times(STATES, STATES_IN_SOAK))
    campaign.record("power-loss", states=sum(sum(one["states"].values()) for one in facts.values()), jobs=facts)


def lose_power(case: str, job: Job, run: Recorded, root: Path, number: int) -> dict[str, object]:
    """So many states of the disk, each checked, and gone on from."""
    choose = random.Random(case)
    states: Counter[str] = Counter()
    continued = 0
    for count, moment in enumerate(moments(run.calls, number, choose)):
        mode = MODES[count % len(MODES)]
        label = f"{case}: {mode} of what was not synced, after {moment} of {len(run.calls)} calls"
        place = root / f"state-{count}"
        place.mkdir()
        run.disk.after(run.calls[:moment], mode, choose).put(place)
        try:
            state = job.state(place, run.expected, run.old)
            states[state] += 1
            if state == "aside":
                repair(job.out(place))
                assert job.state(place, run.expected, run.old) == "old"
            assert state != "absent" or run.old is None, "the old OUT is lost"
            assert state == "whole" or moment < len(run.calls), "exit 0 was told, and OUT is not there"
            result = job.merge(place, overwrite=state != "absent")
            continued += result.resumed > 0
            job.check_finished(place, run.expected)
        except Exception as error:
            raise AssertionError(f"{label}: {error}") from error
        shutil.rmtree(place)
    return {"calls": len(run.calls), "states": dict(states), "continued": continued}
