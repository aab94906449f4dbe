"""Soups: uniform and greedy, by the user's own evaluation, and what they are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from stockpot import engine, errors
from stockpot.evaluate import Selection
from stockpot.recipe import Recipe
from stockpot.soups._choice import Rules, Step, choose, chosen
from stockpot.soups._ingredients import Correspondence, Ingredients, Model
from stockpot.soups._lines import plain, shape_of
from stockpot.soups._running import Evaluation, Running, to_evaluator
from stockpot.soups._scorer import Scorer


@dataclass(frozen=True)
class Candidate:
    """Something that was scored. ``sort``: model, tried (a step of the search), or the name of a kind of soup."""

    label: str
    sort: str
    weights: Mapping[int, float]
    scores: Mapping[str, float]
    tested: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Soup:
    """How a soup was chosen. ``weights``: of each model (by number, from 0); ``steps``: the decisions, in order.

    ``candidates``: everything that was scored, singles first; ``chosen`` the one among them that was taken.
    ``metric`` None: nothing was evaluated.
    """

    kind: str
    models: tuple[str, ...]
    base: str | None
    metric: str | None
    direction: str
    weights: Mapping[int, float]
    steps: tuple[Step, ...]
    candidates: tuple[Candidate, ...]
    recipe: Recipe
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    evaluated: int
    known: int
    test_metric: str | None = None
    out: Path | None = None

    @property
    def chosen(self) -> Candidate | None:
        """The candidate that was taken."""
        return next((one for one in self.candidates if one.sort == self.kind), None)

    def data(self) -> dict[str, object]:
        """Plain values: the decision log."""
        return {
            "kind": self.kind,
            "models": list(self.models),
            "base": self.base,
            "metric": self.metric,
            "direction": self.direction,
            "weights": {self.models[number]: weight for number, weight in sorted(self.weights.items())},
            "steps": [
                {
                    "model": None if step.model < 0 else self.models[step.model],
                    "members": [self.models[number] for number in step.members],
                    "score": plain(self._signed(step.gain)),
                    "before": None if step.before is None else plain(self._signed(step.before)),
                    "accepted": step.accepted,
                    "drop": step.drop,
                }
                for step in self.steps
            ],
            "candidates": [
                {
                    "label": one.label,
                    "sort": one.sort,
                    "weights": {self.models[number]: weight for number, weight in sorted(one.weights.items())},
                    "scores": {name: plain(value) for name, value in one.scores.items()},
                    "tested": {name: plain(value) for name, value in one.tested.items()},
                }
                for one in self.candidates
            ],
            "notes": list(self.notes),
        }

    def _signed(self, gain: float) -> float:
        return gain if self.direction == "max" else -gain


def uniform(
    models: Sequence[Model],
    *,
    base: Model | None = None,
    out: str | Path | None = None,
    evaluate: Evaluation | None = None,
    select: str | None = None,
    test: Evaluation | None = None,
    overwrite: bool = False,
    correspondence: Correspondence | None = None,
    running: Running | None = None,
) -> Soup:
    """The mean of all models; with an evaluator, scored beside each of them.

    Arguments: ``models``, one or more; ``base``, whose Model Stock is then one more rival; ``out``, where to write the
    soup (None: nowhere); ``evaluate`` and ``select`` as ``greedy``; ``test``, scored once at the end. Returns a Soup.
    Raises as ``greedy``. Cost: N + 1 evaluations, none without an evaluator; one merge. Reference: arXiv 2203.05482.
    """
    study = Study.begin(models, base, evaluate, select, test, correspondence, running, out, overwrite)
    everyone = tuple(range(len(study.ingredients.models)))
    if study.scorer is None:
        return study.finish("uniform", study.even(everyone), (), [], out, overwrite)
    study.expect(len(everyone) + 1)
    candidates = study.singles()
    if len(everyone) > 1:
        candidates.append(study.candidate("uniform soup", "uniform", study.even(everyone)))
    return study.finish("uniform", study.even(everyone), (), candidates, out, overwrite)


def greedy(
    models: Sequence[Model],
    evaluate: Evaluation,
    *,
    base: Model | None = None,
    out: str | Path | None = None,
    select: str | None = None,
    test: Evaluation | None = None,
    rules: Rules | None = None,
    jobs: int = 1,
    overwrite: bool = False,
    correspondence: Correspondence | None = None,
    running: Running | None = None,
) -> Soup:
    """Add models one after the other, best first, as long as the held-out score does not fall.

    Arguments: ``models``, one or more; ``evaluate``, words for an evaluator or a function, on held-out data (never the
    test set: the choice is made by it); ``base``, whose Model Stock is then one more rival, and for angles where
    greedy keeps one model; ``out``, where to write the soup (None: nowhere), the same bytes as
    ``merge("linear", models=chosen)``; ``select``, the number that decides, with ``:min`` where less is better;
    ``test``, an evaluator that is asked only once at the end, for the soup and its rivals; ``rules`` of the search;
    ``jobs``, processes that score the single models.
    Returns a Soup. Raises UsageError kinds, EvaluatorError (what was scored is kept in ``running.cache``), and what a
    merge raises. Cost: N + (N - 1) evaluations, one more with a base, each reading its members; memory is one live
    model. Reference: Wortsman et al., arXiv 2203.05482, recipe 1.

    >>> import torch
    >>> models = [{"w": torch.tensor([value])} for value in (0.0, 1.0, 5.0)]
    >>> soup = greedy(models, lambda weights: -abs(float(weights["w"]) - 0.6))
    >>> soup.weights
    {0: 0.5, 1: 0.5}
    """
    rules = rules or Rules()
    study = Study.begin(models, base, evaluate, select, test, correspondence, running, out, overwrite)
    assert study.scorer is not None
    count = len(study.ingredients.models)
    study.expect(2 * count - 1 + rules.prune)
    if jobs > 1:
        from stockpot.soups._jobs import score_singles

        score_singles(study.ingredients, evaluate, study.running, jobs)
    candidates = study.singles()
    tried: dict[tuple[int, ...], Candidate] = {}

    def gain(members: tuple[int, ...]) -> float:
        if len(members) == 1:
            return study.gain(candidates[members[0]])
        names = " + ".join(str(number + 1) for number in members)
        tried[members] = study.candidate(f"soup of {names}", "tried", study.even(members))
        return study.gain(tried[members])

    steps = choose([study.gain(one) for one in candidates], gain, rules, study.running.decided)
    members = chosen(steps).members
    taken = tried.pop(members, candidates[members[0]])
    candidates += tried.values()
    candidates.append(Candidate("greedy soup", "greedy", study.even(members), taken.scores))
    notes = study.why_one(steps, candidates) if len(members) == 1 and count > 1 else []
    return study.finish("greedy", study.even(members), tuple(steps), candidates, out, overwrite, notes)


@dataclass
class Study:
    """One soup under way."""

    ingredients: Ingredients
    scorer: Scorer | None
    selection: Selection
    test: Evaluation | None
    running: Running

    @classmethod
    def begin(
        cls,
        models: Sequence[Model],
        base: Model | None,
        evaluate: Evaluation | None,
        select: str | None,
        test: Evaluation | None,
        correspondence: Correspondence | None,
        running: Running | None,
        out: str | Path | None,
        overwrite: bool,
    ) -> Study:
        """Everything open, every evaluator found."""
        running = running or Running()
        ingredients = Ingredients.open(models, base, correspondence)
        if test is not None:
            to_evaluator(test, running.test_options)  # what is wrong with it is told before anything is evaluated
        if test is not None and evaluate is None:
            raise errors.UsageError("--test compares what an evaluator has chosen", remedy="give --evaluate too")
        scorer = None if evaluate is None else running.scorer(ingredients, evaluate)
        # All of them are to correspond, and OUT is to be free: told now, not after hours of evaluation.
        everyone = ingredients.average(range(len(ingredients.models)))
        place = Path("memory") if out is None else Path(out).expanduser()
        plan = running.live(ingredients).plan(everyone, place)
        if out is not None:
            engine.check_output(plan, overwrite=overwrite, dry_run=True)
        return cls(ingredients, scorer, Selection.parse(select), test, running)

    def expect(self, evaluations: int) -> None:
        """Tell whoever listens how many scores will be asked for."""
        self.running.begin(evaluations + (self.ingredients.base is not None and len(self.ingredients.models) > 1))

    def even(self, members: Sequence[int]) -> dict[int, float]:
        """Equal weights."""
        return {number: 1.0 / len(members) for number in members}

    def singles(self) -> list[Candidate]:
        """Every model by itself."""
        names = self.ingredients.models
        return [self.candidate(names[number], "model", {number: 1.0}) for number in range(len(names))]

    def candidate(self, label: str, sort: str, weights: Mapping[int, float], recipe: Recipe | None = None) -> Candidate:
        """Score one."""
        assert self.scorer is not None
        scores = self.scorer(recipe or self.recipe(weights), label)
        self.selection = self.selection.among(scores.values)
        return Candidate(label, sort, dict(weights), scores.values)

    def recipe(self, weights: Mapping[int, float]) -> Recipe:
        """The mean of the members, or with unequal weights their sum; members in the user's order."""
        members = sorted(weights)
        values = [weights[number] for number in members]
        return self.ingredients.average(members, None if len(set(values)) == 1 else values)

    def gain(self, candidate: Candidate) -> float:
        """With the sign that makes more better."""
        return self.selection.gain(candidate.scores)

    def why_one(self, steps: Sequence[Step], candidates: Sequence[Candidate]) -> list[str]:
        """Greedy kept one model: the barrier, and with a base the angle, between it and those that were tried."""
        if any(step.drop for step in steps) or len(steps) < 2 or any(step.gain >= steps[0].gain for step in steps[1:]):
            return []
        best = steps[0].model
        angles = {}
        if self.ingredients.base is not None:
            total = shape_of(self.ingredients, self.running).by("model")
            if total.names:
                angles = dict(zip(total.pairs, np.degrees(total.angles[0]).tolist(), strict=True))
        words = []
        for step in steps[1:4]:
            depth = (self.gain(candidates[best]) + self.gain(candidates[step.model])) / 2.0 - step.gain
            pair = (min(best, step.model), max(best, step.model))
            angle = f", {angles[pair]:.0f} degrees apart" if pair in angles else ""
            apart = (
                f"a barrier of {depth:.4g}" if depth > 0 else "better than the two at the mean, but not than the best,"
            )
            words.append(f"{self.ingredients.models[step.model]} ({apart} half-way{angle})")
        more = f" and {len(steps) - 4} more" if len(steps) > 4 else ""
        return [
            f"greedy kept {self.ingredients.models[best]} alone: no mean with another scores as well: "
            f"{', '.join(words)}{more}"
        ]

    def finish(
        self,
        kind: str,
        weights: Mapping[int, float],
        steps: tuple[Step, ...],
        candidates: list[Candidate],
        out: str | Path | None,
        overwrite: bool,
        notes: Sequence[str] = (),
        recipe: Recipe | None = None,
    ) -> Soup:
        """Compare with the rivals, test once, write; ``recipe``: where weights alone do not say it."""
        recipe = recipe or self.recipe(weights)
        if self.scorer is not None and self.ingredients.base is not None and len(self.ingredients.models) > 1:
            stock = self.ingredients.recipe("model_stock", range(len(self.ingredients.models)))
            candidates.append(self.candidate("Model Stock", "model_stock", {}, stock))
        tested, test_metric = self._tested(kind, recipe, candidates)
        found = Soup(
            kind,
            self.ingredients.models,
            self.ingredients.base,
            self.selection.name if self.scorer is not None else None,
            self.selection.direction,
            dict(weights),
            steps,
            tuple(tested),
            recipe,
            tuple(notes),
            (),
            0 if self.scorer is None else self.scorer.evaluated,
            0 if self.scorer is None else self.scorer.known,
            test_metric,
        )
        return found if out is None else written(found, self.ingredients, self.running, Path(out), overwrite)

    def _tested(self, kind: str, recipe: Recipe, candidates: list[Candidate]) -> tuple[list[Candidate], str | None]:
        """The test, asked once for each: the soup, the best single, all others that are no steps of the search."""
        if self.test is None:
            return candidates, None
        singles = [one for one in candidates if one.sort == "model"]
        best = max(singles, key=self.gain)
        scorer = self.running.for_test().scorer(self.ingredients, self.test)
        tested = []
        for one in candidates:
            if one.sort == "tried" or (one.sort == "model" and one is not best):
                tested.append(one)
                continue
            own = recipe if one.sort == kind else self.recipe(one.weights) if one.weights else None
            own = own or self.ingredients.recipe("model_stock", range(len(self.ingredients.models)))
            scores = scorer(own, f"{one.label} (test)")
            tested.append(Candidate(one.label, one.sort, one.weights, one.scores, scores.values))
        names = list(next(one.tested for one in tested if one.tested))
        return tested, self.selection.name if self.selection.name in names else names[0]


def written(found: Soup, ingredients: Ingredients, running: Running, out: Path, overwrite: bool) -> Soup:
    """The soup made by the engine, with the story of its choice; a refusal leaves everything as it was."""
    live = running.live(ingredients)
    story = engine.Story(found.data(), tuple(story_lines(found)))
    result = engine.write(live.plan(found.recipe, out.expanduser(), story), overwrite=overwrite)
    return replace(found, out=result.out, warnings=(*found.warnings, *result.warnings))


def story_lines(found: Soup) -> list[str]:
    """For the model card: what was chosen by what, as Markdown."""
    if found.metric is None:
        return [f"Mean of {len(found.models)} models."]
    better = "more is better" if found.direction == "max" else "less is better"
    lines = [
        f"Chosen by `{found.metric}` ({better}) on held-out data.",
        "",
        f"| candidate | {found.metric} |",
        "|---|---|",
    ]
    shown = [one for one in found.candidates if one.sort != "tried"]
    return [*lines, *(f"| {one.label.replace('|', '&#124;')} | {one.scores[found.metric]:.6g} |" for one in shown)]
