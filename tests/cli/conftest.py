"""Tiny checkpoints and the program under test."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest

from ._judges import judge
from ._kitchen import Kitchen, Program

__all__ = ["judge"]


@pytest.fixture
def program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    """The command line, in this process; refusals are held against everything under ``tmp_path``."""
    return Program(capsys, tmp_path)


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kitchen:
    """A base and two fine-tunes in folders, in the current folder; nothing else is there."""
    monkeypatch.chdir(tmp_path)
    return Kitchen.create(tmp_path)
