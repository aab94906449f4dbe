"""``kill -9`` in every phase of a real merge: OUT is absent, the old one, or whole, and the same command goes on."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.engine._processes import Ended, ended, reaches

from stockpot.checkpoint._journal import decode

from ._jobs import COLUMNS, LAYERS, ROWS, Job, made_of, old_output, undisturbed, without_syncing, write_inputs
from ._layer import Call, Layer, calls
from .conftest import Campaign

SLOW_MICROSECONDS = 2000
"""After each write, so that there is something in the journal by the time of most kills."""
BYTES_PER_TENSOR = 3 * ROWS * COLUMNS * 4
"""Read of the three inputs."""
FEW_DESCRIPTORS = 24

JOBS: dict[str, tuple[Callable[[list[Path]], Job], int, int]] = {
    "folder": (lambda inputs: Job(inputs, "out"), 8, 80),
    "in place of an old folder": (lambda inputs: Job(inputs, "out", ("--overwrite",), old_output), 6, 50),
    "one safetensors file": (lambda inputs: Job(inputs, "out.safetensors"), 4, 40),
    "few descriptors": (lambda inputs: Job(inputs, "out", shard_size="60kB"), 2, 24),
    "one pickle": (lambda inputs: Job(inputs, "out.pt"), 0, 20),
}
"""What is killed how often, in the tests and in soak (a pickle in soak alone: its program takes seconds to load)."""


@dataclass
class Phases:
    """Where an undisturbed run makes which calls, and which of them the next kill is to hit."""

    calls: list[Call]
    place: Path
    seconds: float
    choose: random.Random
    kills: int = 0
    hits: Counter[str] = field(default_factory=Counter)

    def rule(self) -> tuple[str, str]:
        """The phase that is next, and the rule that kills in it; each phase in turn."""
        phase = ("planning", "writing", "renaming", "reading", "journal", "syncing", "tidying", "clock")[self.kills % 8]
        began = next(n for n, call in enumerate(self.calls) if call.name == "mkdir")
        early = began // 2  # opening and reading are two calls each, at least
        names = Counter(call.name for call in self.calls[began:])
        action = ("after", "before")[self.kills // 8 % 2]
        self.kills += 1
        if phase == "clock":
            return phase, ""
        if phase == "planning":
            return phase, f"any:{self.choose.randint(1, early)}:{action}:/inputs/"
        if phase == "reading":
            return phase, f"map:{self.choose.randint(1, max(1, names['map'] // 2))}:{action}:/inputs/"
        if phase == "writing":
            return phase, f"write:{self.choose.randint(1, names['write'] // 2)}:torn:/model"
        if phase == "journal":
            return phase, f"write:{self.choose.randint(2, 4)}:torn:journal"
        if phase == "syncing":
            return phase, f"sync:{self.choose.randint(1, names['sync'])}:{action}"
        if phase == "renaming":
            name = "exchange" if names["exchange"] else "rename"
            return phase, f"{name}:1:{action}"
        name = "unlink" if names["unlink"] > 1 else "rmdir"
        return phase, f"{name}:{self.choose.randint(1, names[name])}:{action}"


def limited() -> None:
    """Few descriptors for the process about to start."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_DESCRIPTORS, FEW_DESCRIPTORS))


@dataclass(frozen=True)
class Killer:
    """One job, under the layer, in folders of its own."""

    case: str
    job: Job
    layer: Layer
    root: Path
    place: Path

    def start(self, *rules: str, log: Path | None = None) -> subprocess.Popen[str]:
        """The process; its files, inputs too, go through the layer."""
        return subprocess.Popen(
            self.job.command(self.place, "--workers", "2", "--json", often=True),
            env=self.layer.environment(self.root, *rules, log=log, slow_microseconds=SLOW_MICROSECONDS, syncs=False),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limited if self.case == "few descriptors" else None,
        )

    def fresh(self) -> dict[str, bytes] | None:
        """What lies there before the job; what OUT was."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        self.job.before(self.job, self.place)
        out = self.job.out(self.place)
        return made_of(out) if out.exists() else None

    def measured(self) -> Phases:
        """An undisturbed run under the layer."""
        self.fresh()
        log = self.root / "log"
        began = time.monotonic()
        result = ended(self.start(log=log))
        assert result.code == 0, result.stderr
        return Phases(calls(log), self.place, time.monotonic() - began, random.Random(self.case))

    def journaled(self) -> int:
        """Tensors that the journal says are finished."""
        try:
            content = (
                self.job.out(self.place).with_name(self.job.name + ".partial") / ".stockpot-journal"
            ).read_bytes()
        except FileNotFoundError:
            return 0
        return sum("tensor" in record for record in decode(content)[0])

    def killed(self, phases: Phases) -> str | None:
        """Kill one run; the phase that was hit, None if it ended first."""
        phase, rule = phases.rule()
        log = self.root / "killed"
        log.unlink(missing_ok=True)
        process = self.start(*([rule] if rule else []), log=log)
        if not rule:
            try:
                process.wait(timeout=phases.choose.uniform(0.3, 1.0) * phases.seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        result = ended(process)
        if result.code == -signal.SIGKILL:
            return phase
        assert result.code == 0, result.stderr
        return None


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Layer:
    """The layer between the program and its files."""
    return Layer.build(tmp_path_factory.mktemp("layer"))


@pytest.fixture(scope="module")
def facts() -> dict[str, dict[str, object]]:
    """What was seen of each job."""
    return {}


@pytest.mark.parametrize("case", JOBS)
def test_killed_in_every_phase(
    case: str, layer: Layer, facts: dict[str, dict[str, object]], campaign: Campaign, tmp_path: Path
) -> None:
    """A run is killed; what it left is checked, and finished; and what it left is gone on from, and killed again."""
    make, *often = JOBS[case]
    if not (kills := campaign.times(*often)):
        pytest.skip("in make soak")
    killer = Killer(case, make(write_inputs(tmp_path / "inputs")), layer, tmp_path, tmp_path / "place")
    expected = undisturbed(killer.job, tmp_path / "straight")
    phases = killer.measured()
    hits: Counter[str] = Counter()
    states: Counter[str] = Counter()
    resumed = spared = missed = 0
    old = killer.fresh()
    while hits.total() < kills:
        phase = killer.killed(phases)
        assert missed <= 10 + hits.total(), "hardly any kill comes in time"
        if phase is None:
            missed += 1
            killer.job.check_finished(killer.place, expected)
            old = killer.fresh()
            continue
        hits[phase] += 1
        state = killer.job.state(killer.place, expected, old)
        states[state] += 1
        assert state != "absent" or old is None, f"{phase}: the old OUT is lost"
        journaled = killer.journaled()
        copy = tmp_path / "copy"
        shutil.copytree(killer.place, copy)
        with without_syncing():
            result = killer.job.merge(copy, overwrite=state == "whole")
        killer.job.check_finished(copy, expected)
        shutil.rmtree(copy)
        if state != "whole":
            assert result.resumed == journaled, f"{phase}: {journaled} tensors were journaled"
        assert result.bytes_read == (LAYERS - result.resumed) * BYTES_PER_TENSOR
        resumed += result.resumed > 0
        spared += result.resumed * BYTES_PER_TENSOR
        if state == "whole":
            old = killer.fresh()
    assert resumed or kills < 8, "nothing was ever gone on from"
    facts[case] = {
        "kills": hits.total(), "phases": dict(hits), "left": dict(states), "continued": resumed,
        "bytes_not_read_again": spared, "ended_first": missed,
    }  # fmt: skip
    campaign.record("kills", kills=sum(int(str(fact["kills"])) for fact in facts.values()), jobs=facts)


STOPS = {
    "reading": (signal.SIGINT, "map:2:stop:/inputs/"),
    "writing": (signal.SIGTERM, "write:4:stop:/model"),
    "syncing": (signal.SIGINT, "sync:6:stop"),
    "small files": (signal.SIGTERM, "create:1:stop:README"),
}


def stopped_and_sent(process: subprocess.Popen[str], log: Path, number: int) -> Ended:
    """Wait until the process stands still where it was told to, send it a signal, and let it go on."""
    assert reaches(process, lambda: any(call.name == "stopped" for call in calls(log)))
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    return ended(process)


@pytest.mark.parametrize("phase", STOPS)
def test_a_signal_in_every_phase(phase: str, layer: Layer, tmp_path: Path) -> None:
    """Its exit code, one line that says how to go on, and a partial from which the same command does."""
    job = Job(write_inputs(tmp_path / "inputs"), "out")
    expected = undisturbed(job, tmp_path / "straight")
    killer = Killer("folder", job, layer, tmp_path, tmp_path / "place")
    killer.fresh()
    number, rule = STOPS[phase]
    code, word = (130, "stopped") if number == signal.SIGINT else (143, "terminated")
    with killer.start(rule, log=tmp_path / "log") as process:
        result = stopped_and_sent(process, tmp_path / "log", number)
    assert result.code == code, result.stderr
    lines = result.stderr.splitlines()
    assert lines == [f"stockpot: error: {word}; the same command goes on from here"]
    error: dict[str, Any] = result.record["error"]
    assert error["kind"] == "stopped"
    assert not job.out(killer.place).exists()
    journaled = killer.journaled()
    again = job.merge(killer.place)
    assert again.resumed == journaled
    assert journaled == LAYERS or phase != "small files"
    job.check_finished(killer.place, expected)
