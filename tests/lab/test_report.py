"""The words and numbers of a demo's report."""

from __future__ import annotations

import pytest
import torch

from stockpot.lab._report import Difference, Scores, Spread, difference, findings, make_row


def _scores(plain: list[list[float]], shifted: list[list[list[float]]]) -> Scores:
    return Scores(torch.tensor(plain, dtype=torch.float64), torch.tensor(shifted, dtype=torch.float64))


def _flat(plain: int, shifted: int, count: int = 1000) -> Scores:
    """One checkpoint that reads the first so many of the digits."""
    places = torch.arange(count)
    return Scores((places < plain).double().reshape(1, -1), (places < shifted).double().reshape(1, 1, -1))


def test_a_row_is_mean_and_range_over_checkpoints() -> None:
    """Golden values: two checkpoints, four digits, two shifts."""
    row = make_row(
        "pair",
        _scores([[1, 1, 1, 0], [1, 0, 0, 0]], [[[1, 1, 0, 0], [0, 0, 0, 0]], [[1, 1, 1, 1], [1, 1, 1, 1]]]),
        ["turn", "noise"],
    )
    assert row.checkpoints == 2
    assert row.in_distribution == Spread(mean=50, low=25, high=75)
    assert row.out_of_distribution == Spread(mean=62.5, low=25, high=100)
    assert row.by_shift == {"turn": 75, "noise": 50}


def test_a_difference_is_paired_over_digits() -> None:
    """Golden values: per-digit differences (1, 0, 0, -1 + 1/2) have mean 1/8 and their standard error."""
    ours = torch.tensor([[1, 1, 0, 0]], dtype=torch.float64)
    theirs = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 0]], dtype=torch.float64)
    found = difference(ours, theirs, "them")
    values = torch.tensor([1, 0, 0, -0.5], dtype=torch.float64)
    assert found.points == pytest.approx(12.5)
    assert found.error == pytest.approx(100 * float(values.std()) / 2)


def test_equal_mistakes_on_different_digits_are_less_certain_than_on_the_same() -> None:
    """Pairing counts: the same errors leave no doubt, other errors do."""
    same = difference(_flat(900, 0).plain, _flat(900, 0).plain, "x")
    other = difference(_flat(900, 0).plain, _flat(900, 0).plain.flip(1), "x")
    assert (same.points, same.error) == (0, 0)
    assert other.points == 0
    assert other.error > 1


@pytest.mark.parametrize(
    ("points", "error", "verdict"),
    [
        (1.0, 0.4, "beats"),
        (-1.0, 0.4, "trails"),
        (1.0, 0.5, "neither beats nor trails"),
        (-1.0, 0.5, "neither beats nor trails"),
        (0.0, 0.0, "neither beats nor trails"),
        (0.1, 0.0, "beats"),
    ],
)
def test_a_verdict_needs_more_than_two_standard_errors(points: float, error: float, verdict: str) -> None:
    """A difference inside its uncertainty is not called one."""
    assert Difference("x", points, error).verdict == verdict


def test_the_words_follow_the_numbers_whoever_wins() -> None:
    """The sentences say that the method trails where it trails, and beats where it beats."""
    scores = {"ours": _flat(900, 800), "one": _flat(950, 700), "all": _flat(850, 800)}
    plain, shifted = findings("ours", scores, {"one": "one fine-tune", "all": "the average"})
    assert plain == (
        "In distribution, ours reads 90.0 %: it trails one fine-tune (-5.0 ± 1.4), and beats the average (+5.0 ± 1.4)."
    )
    assert shifted == (
        "Under shift, ours reads 80.0 %: it beats one fine-tune (+10.0 ± 1.9), "
        "and neither beats nor trails the average (+0.0 ± 0.0)."
    )


def test_three_verdicts_make_one_sentence() -> None:
    """Each verdict once, in the order of the others."""
    scores = {"ours": _flat(900, 0), "a": _flat(800, 0), "b": _flat(900, 0), "c": _flat(950, 0)}
    plain, _ = findings("ours", scores, {"a": "a", "b": "b", "c": "c"})
    assert plain.endswith(
        "it beats a (+10.0 ± 1.9), neither beats nor trails b (+0.0 ± 0.0), and trails c (-5.0 ± 1.4)."
    )


def test_others_with_one_verdict_share_it() -> None:
    """Two that are beaten are named together; two that are level are joined by or."""
    scores = {"ours": _flat(900, 900), "a": _flat(800, 900), "b": _flat(700, 900)}
    plain, shifted = findings("ours", scores, {"a": "a", "b": "b"})
    assert plain.endswith("it beats a (+10.0 ± 1.9) and b (+20.0 ± 2.5).")
    assert shifted.endswith("it neither beats nor trails a (+0.0 ± 0.0) or b (+0.0 ± 0.0).")
