"""The greedy loops on tables of scores."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import soups as oracle

from stockpot import errors
from stockpot.soups import Rules, choose, chosen

# Few values, so that ties happen.
TABLES = st.integers(1, 5).flatmap(
    lambda count: st.lists(st.integers(0, 6), min_size=2**count, max_size=2**count).map(lambda own: (count, own))
)


def table_of(made: tuple[int, list[int]]) -> tuple[list[float], dict[tuple[int, ...], float]]:
    """A score for every set of members."""
    count, values = made
    sets = [tuple(number for number in range(count) if bits >> number & 1) for bits in range(1, 2**count)]
    scores = dict(zip(sets, map(float, values[1:]), strict=True))
    return [scores[(number,)] for number in range(count)], scores


@given(made=TABLES, ties=st.booleans())
def test_the_paper_s_choice_and_never_below_the_best_single(made: tuple[int, list[int]], ties: bool) -> None:
    """As the oracle, on random score tables; asked for N - 1 mixtures."""
    singles, scores = table_of(made)
    asked = []

    def gain(members: tuple[int, ...]) -> float:
        asked.append(members)
        return scores[members]

    steps = choose(singles, gain, Rules(accept_ties=ties))
    found = chosen(steps)
    expected = oracle.greedy(singles, lambda members: scores[tuple(sorted(members))], ties)
    assert frozenset(found.members) == expected
    assert found.gain == scores[found.members] >= max(singles)
    assert len(asked) == len(singles) - 1
    assert len(steps) == len(singles)


@given(made=TABLES)
def test_pruning_never_harms(made: tuple[int, list[int]]) -> None:
    """The pruned soup is at least as good as the mean of all; asked for N mixtures; at least one member stays."""
    singles, scores = table_of(made)
    asked = []

    def gain(members: tuple[int, ...]) -> float:
        asked.append(members)
        return scores[members]

    steps = choose(singles, gain, Rules(prune=True))
    assert chosen(steps).gain >= scores[tuple(range(len(singles)))]
    assert chosen(steps).members
    assert len(asked) <= len(singles) + 1
    dropped = [step.model for step in steps if step.drop]
    worst_first = sorted(range(len(singles)), key=lambda number: -singles[number])[::-1]
    assert dropped == worst_first[: len(dropped)]


@given(made=TABLES, most=st.integers(1, 5), least_gain=st.sampled_from([0.0, 1.0, 2.0]))
def test_bounds(made: tuple[int, list[int]], most: int, least_gain: float) -> None:
    """No more members than allowed; each brought its gain."""
    singles, scores = table_of(made)
    steps = choose(singles, scores.__getitem__, Rules(most=most, least_gain=least_gain))
    assert len(chosen(steps).members) <= most
    for step in steps[1:]:
        assert step.before is not None
        assert step.accepted == (step.gain >= step.before + least_gain)


def test_orders() -> None:
    """Best first, ties as listed; as given; by chance, the same for one seed, every order for some seed."""
    singles = [1.0, 3.0, 3.0, 2.0]

    def order(rules: Rules) -> tuple[int, ...]:
        return tuple(step.model for step in choose(singles, lambda members: 0.0, rules))

    assert order(Rules()) == (1, 2, 0 + 3, 0)
    assert order(Rules(order="given")) == (0, 1, 2, 3)
    assert order(Rules(order="random", seed=4)) == order(Rules(order="random", seed=4))
    assert {order(Rules(order="random", seed=seed)) for seed in range(500)} == set(itertools.permutations(range(4)))


def test_a_duplicate_of_a_soup_of_one() -> None:
    """Accepted under ties, rejected without: the golden case."""
    for ties in (True, False):
        steps = choose([5.0, 5.0], lambda members: 5.0, Rules(accept_ties=ties))
        assert chosen(steps).members == ((0, 1) if ties else (0,))


def test_every_decision_is_heard_as_it_falls() -> None:
    """Before the next mixture is asked for."""
    log: list[object] = []

    def gain(members: tuple[int, ...]) -> float:
        log.append(members)
        return 0.0

    choose([2.0, 1.0, 0.0], gain, Rules(), log.append)
    assert [type(entry).__name__ for entry in log] == ["Step", "tuple", "Step", "tuple", "Step"]


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"order": "best"}, "unknown order 'best'"),
        ({"least_gain": -1.0}, "least gain"),
        ({"least_gain": float("nan")}, "least gain"),
        ({"most": 0}, "members at most"),
        ({"most": 2, "prune": True}, "pruning starts from all"),
    ],
)
def test_rules_that_cannot_be(rules: dict[str, object], says: str) -> None:
    """Told when they are made."""
    with pytest.raises(errors.UsageError, match=says):
        Rules(**rules)  # type: ignore[arg-type]  # values of several types
