"""The fuzzer finds what is planted, its guard sees what no input may bring about, and what it found stays mended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("atheris", reason="atheris has no wheel for this platform")

from fuzz._catalogue import PLACES, PLANTED, target_of
from fuzz._session import session

from stockpot import errors, recipe

FINDINGS = Path(__file__).parent / "findings"
RUNS = 200_000


@pytest.mark.slow  # make fuzz begins with it
@pytest.mark.parametrize("is_watched", [True, False])
def test_a_planted_bug_is_found_by_coverage_alone(is_watched: bool, tmp_path: Path) -> None:
    """Behind five branches: what is watched leads there, and without it nothing does."""
    found = session(PLANTED, tmp_path, runs=RUNS, seed=1, is_watched=is_watched)
    assert (found.finding is not None) == is_watched, found.said
    if is_watched:
        assert found.executions < RUNS
        assert Path(found.finding or "").read_bytes().startswith(b"stock")


GUARDED = """
import os, signal, socket, subprocess, sys
from pathlib import Path
from fuzz._guard import Finding, Guard, guarded
from stockpot import errors

def hang():
    while True:
        pass

def swallowed():
    try:
        open("/etc/passwd")
    except BaseException:
        pass

def steer():
    class Odd(errors.InputError):
        def line(self):
            return "\\x1b[2J"
    raise Odd("x")

folder = Path(sys.argv[1])
(folder / "in").mkdir()
(folder / "in" / "f").write_text("x")
CASES = {
    "read elsewhere": lambda: open("/etc/passwd"),
    "read elsewhere, caught": swallowed,
    "read above": lambda: open(folder / "in" / ".." / "g"),
    "write": lambda: open(folder / "in" / "f", "w"),
    "remove": lambda: os.remove(folder / "in" / "f"),
    "make a folder": lambda: os.mkdir(folder / "in" / "d"),
    "list elsewhere": lambda: os.listdir("/"),
    "import": lambda: __import__("antigravity"),
    "eval": lambda: eval("1"),
    "compile": lambda: compile("1", "x", "eval"),
    "command": lambda: os.system("true"),
    "process": lambda: subprocess.run(["true"]),
    "socket": lambda: socket.socket(),
    "hang": hang,
    "memory": lambda: b"x" * 150_000_000,
    "another error": lambda: {}["x"],
    "no end of recursion": (lambda f: f(f))(lambda f: lambda: f(f)() and 1),
    "steer": steer,
}
HARMLESS = {
    "ours": lambda: (_ for _ in ()).throw(errors.InputError("no")),
    "read": lambda: open(folder / "in" / "f").close(),
    "list": lambda: os.listdir(folder / "in"),
    "nothing": lambda: None,
}
guard = Guard(folder / "in")
guard.install()
for name, run in {**CASES, **HARMLESS}.items():
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        guarded(lambda data: run(), guard)(b"")
    except BaseException as error:
        found = type(error).__name__
    else:
        found = "nothing"
    expected = {"another error": "KeyError", "no end of recursion": "RecursionError"}.get(name, "Finding")
    if found != ("nothing" if name in HARMLESS else expected):
        print(name, found)
assert (folder / "in" / "f").read_text() == "x"
"""


def test_the_guard_sees_what_no_input_may_bring_about(tmp_path: Path) -> None:
    """Files elsewhere, writing, imports, code, processes, hangs, memory, errors of others; and nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def outcome(run: Any, data: bytes) -> None:
    """Run one input; only errors of ours may come of it."""
    said = ""
    try:
        run(data)
    except errors.StockpotError as error:
        said = error.line()
    assert said.isprintable()
    said.encode()


@pytest.mark.parametrize("name", PLACES)
def test_seeds_and_findings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a target begins with, and every input that ever was a finding, is read or refused by an error of ours."""
    monkeypatch.setattr(recipe, "NODES_CAP", recipe.NODES_CAP)  # which a target lowers, for this test alone
    target = target_of(name)
    run = target.prepare(tmp_path)
    findings = sorted(FINDINGS.glob(f"{name}-*"))
    for data in [*target.seeds(), *(path.read_bytes() for path in findings)]:
        outcome(run, data)
