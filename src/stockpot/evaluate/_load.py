"""From the words of ``--evaluate`` to an evaluator."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from stockpot import errors
from stockpot.evaluate._base import Evaluator, Learner, Options
from stockpot.evaluate._functions import is_function, load_function, load_object

FORMS = (
    "module:function", "file.py:function", 'command:"program {checkpoint}"', "images:FOLDER", "text:FILE",
    "perplexity:FILE", "lm-eval:TASKS",
)  # fmt: skip


def load_evaluator(text: str, options: Options | None = None) -> Evaluator:
    """The evaluator that the words name; UsageError kinds where there is none, or its data cannot be used."""
    options = options or Options()
    form, colon, rest = text.partition(":")
    if colon and form in _BUILT_IN and rest:
        return _built_in(form, text, rest, options)
    if is_function(text):
        return load_function(text, options)
    raise errors.UsageError("--evaluate cannot be read", expected=" or ".join(FORMS), got=repr(text))


def load_learner(text: str, options: Options) -> Learner:
    """``images:FOLDER``, ``text:FILE``, or a ``module:object`` that has ``batches`` and ``logits``."""
    form = text.partition(":")[0]
    if form in ("images", "text"):
        from stockpot.evaluate._images import ImageEvaluator
        from stockpot.evaluate._learners import BuiltInLearner
        from stockpot.evaluate._text import TextEvaluator

        evaluator = load_evaluator(text, Options(limit=options.limit, batch=options.batch, device=options.device))
        assert isinstance(evaluator, ImageEvaluator | TextEvaluator)
        return BuiltInLearner(evaluator, options)
    if form in ("command", "perplexity", "lm-eval"):
        raise errors.UsageError(
            f"{form}: gives no gradients", expected="images:FOLDER, text:FILE or module:object",
            remedy="give --learn beside --evaluate",
        )  # fmt: skip
    from stockpot.evaluate._learners import OwnLearner

    found, source = load_object(text)
    for name, wanted in (("batches", "batches(epoch)"), ("logits", "logits(weights, inputs)")):
        if not callable(getattr(found, name, None)):
            raise errors.UsageError(
                f"what is to learn has no {name}", file=text, expected=f"{wanted} beside its like",
                remedy="see docs/soups.md, or give --learn",
            )  # fmt: skip
    content = None if source is None else {"form": "own", "name": text.rpartition(":")[2], "source": source}
    return OwnLearner(found.batches, found.logits, content)


_BUILT_IN: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "command": ("_command", "load_command", ()),
    "images": ("_images", "load_images", ("seed", "timeout")),
    "text": ("_text", "load_text", ("seed", "timeout")),
    "perplexity": ("_perplexity", "load_perplexity", ("seed", "timeout")),
    "lm-eval": ("_lm_eval", "load_harness", ("timeout",)),
}
"""Form -> module, function that reads its data, options that it has no use for."""


def _built_in(form: str, text: str, rest: str, options: Options) -> Evaluator:
    module, function, refused = _BUILT_IN[form]
    for name in refused:
        if name in options.given():
            raise errors.UsageError(f"{form}: takes no --{name}", remedy="leave it out")
    load = getattr(importlib.import_module(f"stockpot.evaluate.{module}"), function)
    found: Evaluator = load(text, rest, options)
    return found
