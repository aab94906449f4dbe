"""Errors go from one process to another whole."""

from __future__ import annotations

import pickle

import pytest

from stockpot import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.EvaluatorError("it failed", file="eval.py:f", expected=1, got=2, remedy="mend it", problems=["a", "b"]),
        errors.MissingExtraError("transformers", "eval"),
        errors.Stopped("stopped", exit_code=143),
        errors.NotFoundError("no such path", file="x"),
    ],
)
def test_pickled(error: errors.StockpotError) -> None:
    """Kind, every part, exit code and message."""
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert found.lines() == error.lines()
    assert found.record() == error.record()
    assert found.exit_code == error.exit_code
    assert str(found) == str(error)
