"""The page about safety says what the last campaigns saw, and SECURITY.md names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmarks.safety import PAGE, RESULTS, written

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_the_results() -> None:
    """``python -m benchmarks.safety`` would change nothing."""
    page = PAGE.read_text("utf-8")
    assert written(page) == page


@pytest.mark.parametrize("campaign", ["fuzz", "kills", "power-loss", "faults", "flips", "leaks", "sparse"])
def test_every_campaign_was_run(campaign: str) -> None:
    """There is a result of each, without a path of the machine that it ran on."""
    text = (RESULTS / f"{campaign}.json").read_text("utf-8")
    assert not re.search(r'"/(?:home|root|tmp|work)', text)


def test_security_names_what_there_is() -> None:
    """Links lead somewhere, and caps are those of the code."""
    from stockpot.checkpoint._header import HEADER_CAP
    from stockpot.recipe import NODES_CAP, SIZE_CAP

    text = (ROOT / "SECURITY.md").read_text("utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / link).exists()
    assert f"{HEADER_CAP // 10**6} MB" in text
    assert f"{SIZE_CAP >> 20} MB" in text
    assert f"{NODES_CAP:,} nodes" in text
