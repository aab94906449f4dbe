"""Patterns held against names that are known: each in bounded ways, all in bounded time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import stockpot
from stockpot import errors
from stockpot.engine import _watch

from ._alignment import aligned, state

LONG = "a" * 400
SLOW = ".*a.*a.*a!"


@pytest.mark.parametrize(
    "asked",
    [{"only": [SLOW]}, {"exclude": [SLOW]}, {"rename": [SLOW + "=x"]}],
)
def test_a_pattern_that_takes_forever_on_a_long_name_is_refused(asked: dict[str, Any]) -> None:
    """Before it is tried: the option, the pattern and what to write instead are told."""
    with pytest.raises(errors.ParameterError, match=r"forever on 400 characters.*few \.\*"):
        aligned("linear", None, [state(LONG), state(LONG)], **asked)


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns that are quick on each name and slow on all of them are refused, with the name where it was enough."""
    monkeypatch.setattr(_watch, "PATIENCE_SECONDS", -1.0)
    with pytest.raises(errors.ParameterError, match="forever on names such as first"):
        aligned("linear", None, [state("first", "b"), state("first", "b")], only=["b"])


def test_a_name_does_not_grow_without_end() -> None:
    """Rules that double a name make it a billion characters in thirty steps."""
    with pytest.raises(errors.ParameterError, match=r"absurdly long; tensor .*at most 1000 characters"):
        aligned("linear", None, [state("w"), state("w")], rename=[r"^(.*)$=\1\1"] * 30)


def test_blocks_are_held_too() -> None:
    """Their patterns meet every name, also where nothing is selected."""
    base, model = state(LONG), state(LONG)
    with pytest.raises(errors.ParameterError, match=r"block_regex .*forever on 400 characters"):
        stockpot.merge_state_dicts(
            "model_stock", base=base, models=[model, model], granularity="block", parameters={"block_regex": SLOW}
        )


@pytest.mark.parametrize(
    ("option", "asked"), [("--kind", {"kinds": {SLOW: "norm"}}), ("block_regex", {"block_regex": SLOW})]
)
def test_geometry_holds_its_patterns(tmp_path: Path, option: str, asked: dict[str, Any]) -> None:
    """The same for what geometry alone asks."""
    for name in ("base", "model"):
        save_file(state(LONG), tmp_path / f"{name}.safetensors")
    with pytest.raises(errors.ParameterError, match=rf"{option} .*forever on 400 characters"):
        stockpot.geometry(base=tmp_path / "base.safetensors", models=[tmp_path / "model.safetensors"], **asked)
