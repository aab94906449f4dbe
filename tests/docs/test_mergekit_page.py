"""The page for those who come from mergekit says what was measured, and what we do today."""

from __future__ import annotations

import json
import re
from typing import Any

import field_differences
import pytest
import typer
from field_differences import CASES, PAGE, RESULTS

from stockpot.cli import app

FOUND = json.loads(RESULTS.read_text("utf-8"))


def test_the_table_is_the_results() -> None:
    """``python scripts/field_differences.py`` would change nothing; every case was asked of both."""
    page = PAGE.read_text("utf-8")
    assert field_differences.written(page, FOUND) == page
    assert list(FOUND["theirs"]) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_our_answer_is_the_one_told(name: str) -> None:
    """The same question again."""
    assert field_differences.ours(CASES[name]) == FOUND["ours"].get(name)


def test_the_options_are_there() -> None:
    """Every option of ours that the page names is one."""
    group: Any = typer.main.get_command(app)
    known = {
        one
        for command in ("merge", "check")
        if command in group.commands
        for parameter in group.commands[command].params
        for one in parameter.opts
    }
    rows = PAGE.read_text("utf-8").split("| mergekit-yaml |")[1]
    named = {option for row in rows.splitlines()[2:] for option in re.findall(r"`(--[a-z-]+)", row.split("|")[2])}
    assert {"--device", "--seed"} < named
    assert named <= known
