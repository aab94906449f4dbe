"""What an evaluation found: named numbers and, where there are any, logits and labels of each example."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stockpot import errors

SCORE = "score"
"""The name of a number that came without one."""
_ARRAYS = ("logits", "labels")


@dataclass(frozen=True)
class Scores:
    """Named numbers; ``logits`` of shape ``(examples, classes)``, ``labels`` of shape ``(examples,)``."""

    values: Mapping[str, float]
    logits: NDArray[np.float32] | None = field(default=None, repr=False)
    labels: NDArray[np.int64] | None = field(default=None, repr=False)


def scores_of(result: object, evaluator: str) -> Scores:
    """A number, or a map of names to numbers with optional ``logits`` and ``labels``; EvaluatorError otherwise.

    >>> scores_of(0.5, "f").values, scores_of({"loss": 1}, "f").values
    ({'score': 0.5}, {'loss': 1.0})
    """
    if not isinstance(result, Mapping):
        return Scores({SCORE: _number(result, SCORE, evaluator)})
    values = {}
    for name, value in result.items():
        if not isinstance(name, str) or not name:
            raise _wrong(evaluator, "names that are words", repr(name))
        if name not in _ARRAYS:
            values[name] = _number(value, name, evaluator)
    if not values:
        raise _wrong(evaluator, "at least one named number", "none")
    logits = _array(result.get("logits"), "logits", 2, np.float32, evaluator)
    labels = _array(result.get("labels"), "labels", 1, np.int64, evaluator)
    if logits is not None and labels is not None and len(logits) != len(labels):
        raise _wrong(evaluator, f"a label for each of {len(logits)} rows of logits", f"{len(labels)} labels")
    if logits is not None and not (logits.size and np.isfinite(logits).all()):
        raise _wrong(evaluator, "finite logits of some examples", f"shape {logits.shape}")
    if logits is not None and labels is not None and not (labels.min() >= 0 and labels.max() < logits.shape[1]):
        raise _wrong(evaluator, f"labels from 0 to {logits.shape[1] - 1}", f"{labels.min()} to {labels.max()}")
    return Scores(values, logits, labels)


def _number(value: Any, name: str, evaluator: str) -> float:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _wrong(evaluator, f"a number for {name}", f"{type(value).__name__} {value!r:.60}")
    try:
        found = float(value)
    except OverflowError:
        found = -math.inf if str(value).startswith("-") else math.inf
    if math.isnan(found):
        raise _wrong(evaluator, f"a number for {name}", "NaN", "leave this model out, or return inf where it fails")
    return found


def _array(value: Any, name: str, dimensions: int, dtype: type, evaluator: str) -> Any:
    if value is None:
        return None
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if name == "logits" else value
    try:
        found = np.asarray(value)
        found = found.astype(dtype, casting="same_kind" if dtype is np.int64 else "unsafe")
    except (TypeError, ValueError) as error:
        raise _wrong(evaluator, f"{name} as an array of numbers", f"{type(value).__name__} ({error})") from None
    if found.ndim != dimensions:
        shape = "(examples, classes)" if dimensions == 2 else "(examples,)"
        raise _wrong(evaluator, f"{name} of shape {shape}", f"shape {found.shape}")
    if np.isnan(found).any():
        raise _wrong(evaluator, f"{name} that are numbers", "NaN")
    return found


def _wrong(evaluator: str, expected: str, got: str, remedy: str | None = None) -> errors.EvaluatorError:
    return errors.EvaluatorError(
        "the evaluator returned what is no score", file=evaluator, expected=expected, got=got, remedy=remedy
    )
