"""Evaluators as a user would write them, in a file beside the models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

CODE = '''
import os, pathlib, time
ASKED = pathlib.Path(os.environ["ASKED"])

def judged(weights):
    """Two numbers; each call leaves a line behind."""
    print("evaluating")
    with ASKED.open("a") as file:
        file.write("x\\n")
    size = sum(float((w.double() ** 2).sum()) for w in weights.values())
    return {"loss": size, "accuracy": 1.0 / (1.0 + size)}

def slowly(weights):
    time.sleep(0.02)
    return judged(weights)

def one(weights, limit=None): return judged(weights)["accuracy"]
def path(checkpoint):
    from safetensors.torch import load_file
    assert (checkpoint / "config.json").is_file()
    return judged(load_file(checkpoint / "model.safetensors"))
def raises(weights): raise KeyError("labels")
def hangs(weights):
    while True: pass
def nan(weights): return float("nan")
def word(weights): return "good"
def shifty(weights):
    count = len(ASKED.read_text()) if ASKED.exists() else 0
    judged(weights)
    return {("a" if count == 0 else "b"): 1.0}
def random(weights):
    judged(weights)
    return float(len(ASKED.read_text()))
'''


class Judge:
    """Where it lies, and how often it was asked."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "judge.py"
        self.log = folder / "asked"
        self.file.write_text(CODE)

    def __call__(self, name: str) -> str:
        """Words for ``--evaluate``."""
        return f"{self.file}:{name}"

    @property
    def asked(self) -> int:
        """Evaluations so far."""
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def judge(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """Evaluators and a cache of results, outside the folder whose content refusals are held against."""
    folder = tmp_path_factory.mktemp("judge")
    made = Judge(folder)
    monkeypatch.setenv("ASKED", str(made.log))
    monkeypatch.setenv("STOCKPOT_CACHE", str(folder / "cache.sqlite"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return made
