"""Recipes with the mistakes that people make: each is refused with the line that its file begins with."""

from __future__ import annotations

import io
import socket
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from tests.cli._kitchen import PREFIX, Program, check_error, snapshot

BAD = sorted(Path(__file__).with_name("bad").glob("*.yaml"))
LEAST = 65


def _unplugged(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a bad recipe asked the network")


@pytest.mark.parametrize("path", BAD, ids=[path.stem for path in BAD])
def test_refused(path: Path, program: Program, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``merge`` and ``check`` exit 2 with the same expected first line (or its beginning, where that ends in dots);
    nothing is written, fetched or asked."""
    monkeypatch.setattr(socket.socket, "connect", _unplugged)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    expected, text = path.read_text("utf-8").split("\n", 1)
    (place / "recipe.yaml").write_text(text, "utf-8")
    before = snapshot(place)
    merged = program("merge", "recipe.yaml", "--out", "out")
    check_error(merged, 2, [])
    said, wanted = PREFIX + merged.first, expected.removeprefix("# ")
    assert said == wanted or (wanted.endswith(" ...") and said.startswith(wanted.removesuffix("...")))
    checked = program("check", "recipe.yaml")
    assert checked.code == 2
    assert checked.first.replace("recipe.parts", "out.parts") == merged.first
    assert snapshot(place) == before


def test_there_are_many() -> None:
    """The corpus does not shrink unseen."""
    assert len(BAD) >= LEAST
