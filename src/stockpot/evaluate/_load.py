"""From the words of ``--evaluate`` to an evaluator."""

from __future__ import annotations

from stockpot import errors
from stockpot.evaluate._base import Evaluator, Options
from stockpot.evaluate._functions import is_function, load_function

FORMS = ("module:function", "file.py:function")


def load_evaluator(text: str, options: Options | None = None) -> Evaluator:
    """The evaluator that the words name; UsageError kinds where there is none."""
    if is_function(text):
        return load_function(text, options or Options())
    raise errors.UsageError("--evaluate cannot be read", expected=" or ".join(FORMS), got=repr(text))
