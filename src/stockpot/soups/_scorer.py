"""Scores of mixtures: built in one live model, evaluated once, kept."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stockpot import engine, errors
from stockpot.checkpoint import Checkpoint, Source
from stockpot.evaluate import Evaluator, ResultCache, Scores, content_key
from stockpot.recipe import Recipe

Heard = Callable[["Scored"], None]
"""Called after each result."""


@dataclass(frozen=True)
class Scored:
    """One result: what was scored, its numbers, the seconds that it took (0: it was known)."""

    label: str
    scores: Scores
    seconds: float
    was_known: bool


class Scorer:
    """Asks the cache first; else builds the mixture in memory (on disk for evaluators of paths) and evaluates it."""

    def __init__(
        self,
        live: engine.LiveModel,
        evaluator: Evaluator,
        cache: ResultCache,
        *,
        with_logits: bool = False,
        twice: bool = False,
        heard: Heard | None = None,
    ) -> None:
        """``with_logits``: results must hold logits, and they are kept; ``twice``: the first model is evaluated again,
        and the numbers must be equal; ``heard`` is told of each result.
        """
        self.evaluator = evaluator
        self.evaluated = 0
        self.known = 0
        self._cache = cache
        self.live = live
        self._with_logits = with_logits
        self._twice = twice
        self._heard = heard
        self._names: frozenset[str] | None = None
        self._digests: dict[str, str] = {}
        self._side_files: dict[str, str] = {}
        self._asked: set[str] = set()
        content = evaluator.content
        # Of an evaluator that nobody knows the content of, results serve this run alone.
        self._results = ResultCache(None) if content is None else cache
        self._key = content_key(content or {})

    def __call__(self, recipe: Recipe, label: str) -> Scores:
        """The scores of a recipe's mixture; ``label`` names it for people."""
        plan = self.live.plan(recipe)
        mixture = self._mixture(plan)
        found = self._results.get(mixture, self._key, with_logits=self._with_logits)
        was_known, seconds = found is not None, 0.0
        if found is None:
            begun = time.perf_counter()
            found = self._fresh(plan, label)
            seconds = time.perf_counter() - begun
            self._results.put(
                mixture, self._key, found,
                label=label, named=self.evaluator.name, seconds=seconds, logits=self._with_logits,
            )  # fmt: skip
            self.evaluated += 1
        elif mixture not in self._asked:
            self.known += 1
        self._asked.add(mixture)
        self._check(found, label)
        if self._twice:
            self._twice = False
            self._compare(found, self._fresh(plan, label), label)
        if self._heard is not None:
            self._heard(Scored(label, found, seconds, was_known))
        return found

    def _fresh(self, plan: engine.Plan, label: str) -> Scores:
        """Evaluate, whatever is known."""
        try:
            if self.evaluator.form == "state_dict":
                return self.evaluator.evaluate(self.live.become(plan), plan.template.folder)
            return self._on_disk(plan)
        except errors.EvaluatorError as error:
            raise errors.EvaluatorError(
                f"{error.what} on {label}",
                file=error.file, expected=error.expected, got=error.got, remedy=error.remedy,
            ) from error.__cause__  # fmt: skip

    def _compare(self, first: Scores, second: Scores, label: str) -> None:
        """Equal, number by number."""
        for name, value in first.values.items():
            if second.values.get(name) != value:
                raise errors.EvaluatorError(
                    f"the evaluator is not deterministic: {name} of {label} differs the second time",
                    file=self.evaluator.name, expected=f"{value!r}", got=f"{second.values.get(name)!r}",
                    remedy="seed it, and let it leave dropout and augmentation out",
                )  # fmt: skip

    def _on_disk(self, plan: engine.Plan) -> Scores:
        """One model is there already; a mixture is written to a temporary folder."""
        job = plan.job
        if len(job.models) == 1 and not job.anchored and job.dtype is None and not job.recipe.policies.rename:
            (number,) = plan.inputs.models
            source = plan.inputs.checkpoints[number]
            if isinstance(source, Checkpoint):  # not one that is put together while it is read
                return self.evaluator.evaluate(source.root)
        folder = Path(tempfile.mkdtemp(prefix="stockpot-"))
        try:
            template = plan.template
            one_file = template.folder is None and template.files
            suffix = (".pt" if template.is_pickle else ".safetensors") if one_file else ""
            out = folder / f"candidate{suffix}"  # a file where the models are files
            engine.write(self.live.plan(job.recipe, out))
            return self.evaluator.evaluate(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _check(self, scores: Scores, label: str) -> None:
        """An evaluator returns the same names each time."""
        names = frozenset(scores.values)
        if self._names is None:
            self._names = names
        if names != self._names:
            raise errors.EvaluatorError(
                f"the evaluator returned other names on {label} than before", file=self.evaluator.name,
                expected=", ".join(sorted(self._names)), got=", ".join(sorted(names)),
            )  # fmt: skip
        if self._with_logits and scores.logits is None:
            raise errors.EvaluatorError(
                "the evaluator returned no logits", file=self.evaluator.name,
                expected="logits of shape (examples, classes), and labels", got=", ".join(scores.values),
            )  # fmt: skip

    def _mixture(self, plan: engine.Plan) -> str:
        digest = engine.mixture_digest(plan, self._digest)
        if not self.evaluator.uses_folder:
            return digest
        template = plan.template
        if template.ref not in self._side_files:
            found = {name: engine.file_digest(str(path)) for name, path in engine.side_files(template).items()}
            self._side_files[template.ref] = content_key(found)
        return content_key({"mixture": digest, "side_files": self._side_files[template.ref]})

    def _digest(self, source: Source) -> str:
        """Once for each source."""
        if source.ref not in self._digests:
            self._digests[source.ref] = content_of(source, self._cache)
        return self._digests[source.ref]


def content_of(source: Source, cache: ResultCache) -> str:
    """The digest of a model's content, taken once for each identity of its files."""
    if not source.files:
        return engine.memory_digest(source)
    found = []
    for file in source.files:
        parts = [file.header_digest, file.size, file.mtime_ns, file.ctime_ns, file.inode, file.device]
        found.append(cache.digest(json.dumps(parts), partial(engine.file_digest, file.path)))
    return content_key({"files": found})
