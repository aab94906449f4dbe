"""The page about speed says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.cases import CASES
from benchmarks.table import PAGE, RESULTS, written


def test_the_table_is_the_results() -> None:
    """``python -m benchmarks.table`` would change nothing."""
    page = PAGE.read_text("utf-8")
    assert written(page) == page


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_every_result_is_of_a_case(file: Path) -> None:
    """No file of a case that is gone; limits are those of the case; no path of the machine it ran on."""
    found = json.loads(file.read_text("utf-8"))
    case = CASES[file.stem]
    assert found["limits"].get("ratio", {}).get("limit") == case.ratio
    assert found["limits"].get("peak_rss_bytes", {}).get("limit") == case.peak
    assert "/home" not in file.read_text("utf-8")
    assert not [word for command in found["commands"].values() for word in command.split() if word.startswith("/")]
