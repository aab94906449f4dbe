"""The shelf of models, made once; a folder with it in which a recipe is run."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

from pathlib import Path

import pytest
import transformers
from tests.cli._kitchen import Program

from ._shelf import stock

transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small real models, none of which may be changed."""
    made = tmp_path_factory.mktemp("shelf")
    stock(made)
    return made


@pytest.fixture
def place(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: nothing in it but the models."""
    for model in shelf.iterdir():
        (tmp_path / model.name).symlink_to(model)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def program(place: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    """The command line, in this process."""
    return Program(capsys, place)
