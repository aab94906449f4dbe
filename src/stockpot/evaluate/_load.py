"""From the words of ``--evaluate`` to an evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from stockpot import errors
from stockpot.evaluate._base import Evaluator, Learner, Options
from stockpot.evaluate._command import load_command
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
        return _BUILT_IN[form](text, rest, options)
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


def _images(text: str, rest: str, options: Options) -> Evaluator:
    from stockpot.evaluate import _transformers as hf
    from stockpot.evaluate._images import ImageEvaluator

    _refuse(options, "images", "seed", "timeout")
    hf.require("transformers", "PIL")
    found = ImageEvaluator(text, Path(rest).expanduser(), options)
    assert found.files
    return found


def _text(text: str, rest: str, options: Options) -> Evaluator:
    from stockpot.evaluate import _transformers as hf
    from stockpot.evaluate._text import TextEvaluator

    _refuse(options, "text", "seed", "timeout")
    hf.require("transformers")
    found = TextEvaluator(text, Path(rest).expanduser(), options)
    assert found.rows
    return found


def _perplexity(text: str, rest: str, options: Options) -> Evaluator:
    from stockpot.evaluate import _transformers as hf
    from stockpot.evaluate._perplexity import PerplexityEvaluator

    _refuse(options, "perplexity", "seed", "timeout")
    hf.require("transformers")
    found = PerplexityEvaluator(text, Path(rest).expanduser(), options)
    assert found.content
    return found


def _harness(text: str, rest: str, options: Options) -> Evaluator:
    from stockpot.evaluate._lm_eval import load_harness

    _refuse(options, "lm-eval", "timeout")
    return load_harness(text, rest, options)


def _refuse(options: Options, form: str, *names: str) -> None:
    """What a built-in evaluator has no use for."""
    for name in names:
        if name in options.given():
            raise errors.UsageError(f"{form}: takes no --{name}", remedy="leave it out")


_BUILT_IN: Mapping[str, Callable[[str, str, Options], Evaluator]] = {
    "command": load_command,
    "images": _images,
    "text": _text,
    "perplexity": _perplexity,
    "lm-eval": _harness,
}
