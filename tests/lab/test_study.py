"""Means, standard errors and paired differences, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from stockpot.lab._reading import Reading, held_score, mean_of
from stockpot.lab._study import Difference, Study, cost_of


def reading(plain: list[float], shifted: list[float], held: float = 0.5) -> Reading:
    """Two digits, one shift."""
    right = torch.tensor([plain, shifted], dtype=torch.float64)
    return Reading(right, 1 - right, (held, 0.3))


def study(*repetitions: dict[float, tuple[Reading, Reading]]) -> Study:
    """Two kinds, at those rates."""
    found = Study(8)
    for one in repetitions:
        for rate, (ours, theirs) in one.items():
            found.add(rate, {"Model Stock of 2": ours, "average of 2": theirs})
    return found


def test_values_and_means() -> None:
    """Per cent; the mean of two models is element by element."""
    one, two = reading([1, 0], [0, 0]), reading([1, 1], [1, 0], held=0.7)
    values = mean_of([one, two]).values
    assert (values["accuracy"], values["shifted_accuracy"]) == (75.0, 25.0)
    assert values["held_accuracy"] == pytest.approx(60.0)
    assert values["shifted_loss"] == pytest.approx(0.75)


def test_rates_are_chosen_on_held_out_digits_in_each_repetition() -> None:
    """Not by the test: the better rate on the test loses here."""
    low, high = reading([0, 0], [0, 0], held=0.9), reading([1, 1], [1, 1], held=0.8)
    found = study({1e-3: (low, low), 2e-3: (high, high)}, {1e-3: (high, low), 2e-3: (low, low)})
    assert found.chosen_rates("Model Stock of 2") == [1e-3, 2e-3]
    row = found.rows()[0]
    assert row["values"]["accuracy"] == {"mean": 0.0, "error": 0.0}
    assert row["rates"] == [1e-3, 2e-3]


def test_ties_go_to_the_smaller_loss() -> None:
    """A hundredth of it."""
    assert held_score(0.9, 0.2) > held_score(0.9, 0.3)
    assert held_score(0.91, 0.3) > held_score(0.9, 0.2)
    assert held_score(0.9, float("nan")) == -float("inf")


def test_one_repetition_is_compared_over_digits() -> None:
    """Differences 1, 0: mean 50 points, error sqrt(0.5) / sqrt(2) of 100."""
    found = study({1e-3: (reading([1, 1], [1, 1]), reading([0, 1], [1, 1]))})
    one = found.against("Model Stock of 2", "average of 2", "accuracy")
    assert (one.points, one.error) == pytest.approx((50.0, 50.0))
    assert found.against("Model Stock of 2", "average of 2", "shifted_accuracy", 1e-3).points == 0


def test_several_are_compared_over_repetitions() -> None:
    """Differences of the repetitions: 50, 0, 100 points; error 50 / sqrt(3)."""
    zero, half, whole = reading([0, 0], [0, 0]), reading([1, 0], [0, 0]), reading([1, 1], [0, 0])
    found = study(*({1e-3: pair} for pair in [(half, zero), (half, half), (whole, zero)]))
    one = found.against("Model Stock of 2", "average of 2", "accuracy")
    assert (one.points, one.error) == pytest.approx((50.0, 50.0 / 3**0.5))
    assert found.rows()[0]["values"]["accuracy"]["error"] == pytest.approx(50 / 3, abs=1e-3)


@pytest.mark.parametrize(
    ("points", "error", "verdict"),
    [
        (2.0, 0.9, "beats"),
        (2.0, 1.1, "neither beats nor trails"),
        (-2.0, 0.9, "trails"),
        (0.0, 0.0, "neither beats nor trails"),
    ],
)
def test_verdicts(points: float, error: float, verdict: str) -> None:
    """Two standard errors decide."""
    assert Difference("x", points, error).verdict == verdict


def test_words_say_what_the_numbers_are() -> None:
    """Wins and losses alike."""
    found = study({1e-3: (reading([1, 1], [0, 0]), reading([0, 0], [1, 1]))})
    found.add(
        1e-3, {"one fine-tune": reading([0, 0], [0, 0]), "Model Stock while training, of 2": reading([1, 1], [1, 1])}
    )
    plain, shifted, *by_rate = found.findings()
    assert plain.startswith("In distribution")
    assert "Model Stock of 2 reads 100.0 %; it beats average of 2 (+100.0 ± 0.0)" in plain
    assert "Model Stock of 2 reads 0.0 %; it trails average of 2 (-100.0 ± 0.0)" in shifted
    assert by_rate[0].endswith("0.001: +100.0 ± 0.0, -100.0 ± 0.0.")
    assert "Model Stock while training, of 2 less Model Stock of 2" in by_rate[-1]


def test_costs() -> None:
    """Fine-tunes to train, and passes for an answer."""
    assert cost_of("base, zero-shot", 8) == (0, 1)
    assert cost_of("ensemble of 8", 8) == (8, 8)
    assert cost_of("greedy soup of 8, all rates", 8) == (8, 1)
    assert cost_of("WiSE-FT, alpha by held-out digits", 8) == (1, 1)
