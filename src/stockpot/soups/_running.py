"""What every study is told about where and how to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from stockpot import engine, errors
from stockpot.evaluate import Evaluator, Options, ResultCache, load_evaluator, of_function
from stockpot.recipe import parse_size
from stockpot.soups._choice import Step
from stockpot.soups._ingredients import Ingredients
from stockpot.soups._scorer import Heard, Scorer

Evaluation = str | Callable[..., object] | Evaluator
"""``module:function`` and its like, a function of a state dict (or of a path), or an Evaluator."""


@dataclass(frozen=True)
class Running:
    """``cache``: a file, or None for this call alone; ``options`` for the evaluator; ``seed`` of the batches of a
    learned soup; ``twice``: evaluate the first model a second time, to find out whether the numbers repeat.

    ``begun`` is told how many scores will be asked for at most, ``heard`` of each result, ``decided`` of each decision
    of a greedy search, ``told`` what a learned soup will cost.
    """

    cache: Path | ResultCache | None = None
    options: Options = field(default_factory=Options)
    memory: str | int = "192MiB"
    workers: int | None = None
    device: str = "cpu"
    twice: bool = False
    seed: int | None = None
    begun: Callable[[int], None] | None = None
    heard: Heard | None = None
    decided: Callable[[Step], None] | None = None
    told: Callable[[str], None] | None = None

    @property
    def memory_bytes(self) -> int:
        """The bound on the engine's buffers."""
        return parse_size(self.memory)

    @cached_property
    def results(self) -> ResultCache:
        """The cache, open; in memory where there is none."""
        return self.cache if isinstance(self.cache, ResultCache) else ResultCache(self.cache)

    def begin(self, count: int) -> None:
        """Everything is found and open; now comes the work."""
        if self.begun is not None:
            self.begun(count)

    def scorer(self, ingredients: Ingredients, evaluation: Evaluation, *, with_logits: bool = False) -> Scorer:
        """A scorer of mixtures of these ingredients."""
        return Scorer(
            self.live(ingredients),
            to_evaluator(evaluation, self.options),
            self.results,
            with_logits=with_logits,
            twice=self.twice,
            heard=self.heard,
        )

    def live(self, ingredients: Ingredients) -> engine.LiveModel:
        """One model in memory that becomes mixtures of these ingredients."""
        return engine.LiveModel(
            ingredients.sources,
            memory=self.memory_bytes,
            workers=self.workers,
            device=engine.choose_device(self.device),
        )

    def pinned(self, ingredients: Ingredients) -> tuple[Ingredients, tuple[str, ...]]:
        """For lines and planes: what is not mixed (left out, averaged, copied) must not change along the way."""
        everyone = range(len(ingredients.models))
        base = ingredients.base is not None
        recipe = ingredients.from_base([1.0 / len(everyone)] * len(everyone)) if base else ingredients.average(everyone)
        apart = [slot.name for slot in self.live(ingredients).plan(recipe).slots if slot.action == "mix"]
        if not apart:
            return ingredients, ()
        some = ", ".join(apart[:3]) + (f" and {len(apart) - 3} more" if len(apart) > 3 else "")
        warning = (
            f"{len(apart)} tensors are not mixed ({some}): every point has the same ones, from the first model or the "
            "mean of all, so that models are not scored with their own"
        )
        return replace(ingredients, pinned=True), (warning,)

    @property
    def test_options(self) -> Options:
        """A bound on examples is for choosing quickly; a test takes all."""
        return replace(self.options, limit=None)

    def for_test(self) -> Running:
        """The same for the last evaluation."""
        return replace(self, options=self.test_options, twice=False)


def to_evaluator(evaluation: Evaluation, options: Options) -> Evaluator:
    """Whatever the caller gave, as an evaluator."""
    if isinstance(evaluation, str):
        return load_evaluator(evaluation, options)
    if isinstance(evaluation, Evaluator):
        return evaluation
    if callable(evaluation):
        return of_function(evaluation, options)
    raise errors.UsageError("the evaluator is no function", got=type(evaluation).__name__)
