"""What tests of safety share: they are short in ``make test``, and whole campaigns in ``make soak``."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from benchmarks import report
from tests.cli.conftest import kitchen, program

__all__ = ["campaign", "kitchen", "program"]
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "safety"


@dataclass(frozen=True)
class Campaign:
    """How much is done: a little in every run of the tests; all of it in ``make soak``, which writes it down."""

    is_soak: bool
    began: float = field(default_factory=time.monotonic)

    def times(self, short: int, soak: int) -> int:
        """How often."""
        return soak if self.is_soak else short

    def record(self, name: str, **facts: object) -> None:
        """Facts of a campaign (JSON), under its name, once its checks held; docs/safety.md is made of them."""
        if self.is_soak:
            RESULTS.mkdir(parents=True, exist_ok=True)
            seconds = round(time.monotonic() - self.began, 1)
            content = {"machine": report.machine(), "seconds": seconds, **facts}
            (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")


@pytest.fixture(scope="module")
def campaign(request: pytest.FixtureRequest) -> Campaign:
    """How much this run does, and since when: the tests of a module are one campaign."""
    return Campaign(is_soak=bool(request.config.getoption("--soak")))
