"""The greedy loops on scores alone: whatever scores a set of members, they choose the same way."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from stockpot import errors

Order = Literal["score", "given", "random"]
ORDERS = ("score", "given", "random")
Gain = Callable[[tuple[int, ...]], float]
"""Score of a mixture of these members (sorted), with the sign that makes more better."""


@dataclass(frozen=True)
class Step:
    """One decision: with (or, ``drop``, without) ``model`` the members score ``gain``; ``before`` was it until then."""

    model: int
    members: tuple[int, ...]
    gain: float
    before: float | None
    accepted: bool
    drop: bool = False


@dataclass(frozen=True)
class Rules:
    """How a greedy soup grows.

    ``order``: best single first (the paper's), as given, or by chance. ``accept_ties``: a model that neither helps nor
    harms joins (the paper's ``>=``; the published script's ``>`` without). ``least_gain``: what a model must bring, at
    least. ``most``: members at most. ``prune``: start from all and drop, worst first. ``seed`` of the random order.
    """

    order: Order = "score"
    accept_ties: bool = True
    least_gain: float = 0.0
    most: int | None = None
    prune: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise errors.unknown_name("order", self.order, ORDERS)
        if self.least_gain < 0.0 or self.least_gain != self.least_gain:
            raise errors.ParameterError("the least gain", expected="0 or more", got=self.least_gain)
        if self.most is not None and self.most < 1:
            raise errors.ParameterError("members at most", expected="1 or more", got=self.most)
        if self.prune and self.most is not None:
            raise errors.UsageError("pruning starts from all: members cannot be bounded", remedy="leave one out")

    def better(self, new: float, old: float) -> bool:
        """Whether ``new`` is taken for ``old``."""
        if self.least_gain > 0.0:
            return new >= old + self.least_gain
        return new >= old if self.accept_ties else new > old


def choose(
    singles: Sequence[float], gain: Gain, rules: Rules, decided: Callable[[Step], None] | None = None
) -> list[Step]:
    """Every decision, in order; the members of the last accepted one are the soup.

    Greedy: start with the first in order; each other is tried once, and kept if the soup with it is better; one that
    is rejected does not end the loop. Under order ``score`` the soup is never worse than the best single, since it
    starts there. Pruned: start from all; each is left out once, worst single first, and stays out if the soup without
    it is better. ``gain`` is asked len(singles) - 1 times (pruned: once more, for all); ``decided`` hears of each
    decision. Ties in the order keep the user's. Reference: Wortsman et al., arXiv 2203.05482, recipe 1.
    """
    order = list(range(len(singles)))
    if rules.order == "score":
        order.sort(key=lambda model: -singles[model])  # stable
    elif rules.order == "random":
        random.Random(rules.seed).shuffle(order)
    steps: list[Step] = []
    walk = _prune(order[::-1], gain, rules) if rules.prune else _grow(order, singles, gain, rules)
    for step in walk:
        steps.append(step)
        if decided is not None:
            decided(step)
    return steps


def _grow(order: Sequence[int], singles: Sequence[float], gain: Gain, rules: Rules) -> Iterator[Step]:
    first, *others = order
    members: tuple[int, ...] = (first,)
    best = singles[first]
    yield Step(first, members, best, None, accepted=True)
    for model in others:
        if rules.most is not None and len(members) >= rules.most:
            return
        tried = tuple(sorted((*members, model)))
        found = gain(tried)
        accepted = rules.better(found, best)
        yield Step(model, tried, found, best, accepted)
        if accepted:
            members, best = tried, found


def _prune(order: Sequence[int], gain: Gain, rules: Rules) -> Iterator[Step]:
    members = tuple(sorted(order))
    best = gain(members)
    yield Step(-1, members, best, None, accepted=True)
    for model in order:
        if len(members) == 1:
            return
        tried = tuple(one for one in members if one != model)
        found = gain(tried)
        accepted = rules.better(found, best)
        yield Step(model, tried, found, best, accepted, drop=True)
        if accepted:
            members, best = tried, found


def chosen(steps: Sequence[Step]) -> Step:
    """The last accepted decision."""
    return next(step for step in reversed(steps) if step.accepted)
