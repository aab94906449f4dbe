"""What an evaluator may return, and which number decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stockpot import errors
from stockpot.evaluate import Selection, scores_of


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor(0.5).bfloat16()]
)
def test_a_number_is_a_score(value: object) -> None:
    """Whatever libraries call a number."""
    assert scores_of(value, "f").values == {"score": 0.5}
    assert scores_of({"loss": value}, "f").values == {"loss": 0.5}


def test_infinity_is_a_number() -> None:
    """A model that diverged may have an infinite loss."""
    assert scores_of({"loss": float("inf")}, "f").values == {"loss": float("inf")}


def test_logits_and_labels() -> None:
    """Tensors of any float dtype come as float32; labels as int64."""
    logits = torch.tensor([[1.0, 2.0], [0.5, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    found = scores_of({"accuracy": 1.0, "logits": logits, "labels": [1, 0]}, "f")
    assert found.logits is not None
    assert found.labels is not None
    assert (found.logits.dtype, found.labels.dtype) == (np.float32, np.int64)
    assert found.logits.tolist() == [[1.0, 2.0], [0.5, 0.0]]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("0.9", "str '0.9'"),
        (None, "NoneType"),
        (True, "bool"),
        (float("nan"), "NaN"),
        ([0.9], "list"),
        (torch.ones(2), "Tensor"),
        ({}, "at least one named number"),
        ({"logits": [[1.0]]}, "at least one named number"),
        ({"a": "x"}, "a number for a"),
        ({1: 0.5}, "names that are words"),
        ({"a": 1.0, "logits": [1.0]}, "(examples, classes)"),
        ({"a": 1.0, "logits": [[float("nan")]]}, "NaN"),
        ({"a": 1.0, "logits": [["x"]]}, "array of numbers"),
        ({"a": 1.0, "labels": [0.5]}, "array of numbers"),
        ({"a": 1.0, "logits": [[1.0], [2.0]], "labels": [0]}, "2 rows of logits"),
    ],
)
def test_what_is_no_score(value: object, says: str) -> None:
    """One line that says what came instead, and from where."""
    with pytest.raises(errors.EvaluatorError) as caught:
        scores_of(value, "eval.py:f")
    assert says in str(caught.value)
    assert "eval.py:f" in str(caught.value)
    assert caught.value.exit_code == 1


def test_selection() -> None:
    """``NAME[:max|:min]``; the sign makes more better."""
    scores = {"loss": 2.0, "accuracy": 0.5}
    assert Selection.parse("loss:min").gain(scores) == -2.0
    assert Selection.parse("accuracy").gain(scores) == 0.5
    assert Selection.parse("accuracy:max").gain(scores) == 0.5
    assert Selection.parse(None).gain({"x": 3.0}) == 3.0
    assert Selection.parse(":min").gain({"x": 3.0}) == -3.0


def test_selections_that_cannot_be() -> None:
    """Several names and no choice; a name that is not there, the nearest offered."""
    scores = {"loss": 2.0, "accuracy": 0.5}
    with pytest.raises(errors.UsageError, match=r"returns several numbers.*loss, accuracy.*--select"):
        Selection.parse(None).of(scores)
    with pytest.raises(errors.UnknownNameError, match=r"unknown metric 'acuracy'; did you mean accuracy"):
        Selection.parse("acuracy:max").of(scores)
