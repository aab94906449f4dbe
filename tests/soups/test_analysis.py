"""Calibration, significance and the soup-against-ensemble formula, against textbooks and closed cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import soups as oracle

from stockpot import errors
from stockpot.soups import accuracy, calibration_error, cross_entropy, mcnemar, soup_against_ensemble
from stockpot.soups._analysis import EXACT_UP_TO

GENERATOR = np.random.default_rng(8)


@given(b=st.integers(0, 7), c=st.integers(0, 7), same=st.integers(0, 3))
def test_mcnemar_counts_every_coin(b: int, c: int, same: int) -> None:
    """Against a listing of all outcomes."""
    first = [True] * b + [False] * c + [True] * same
    second = [False] * b + [True] * c + [True] * same
    assert mcnemar(first, second) == pytest.approx(float(oracle.mcnemar(b, c)), rel=1e-15)


def test_mcnemar_of_many() -> None:
    """Past the bound the logarithmic form goes on where the exact one ends; both are symmetric."""

    def p(b: int, c: int) -> float:
        return mcnemar([True] * b + [False] * c, [False] * b + [True] * c)

    half = EXACT_UP_TO // 2
    exact, beyond = p(half - 60, half + 60), p(half - 60, half + 61)
    assert beyond == pytest.approx(exact, rel=0.1)
    assert p(half + 61, half - 60) == beyond
    assert p(half + 1, half + 1) == 1.0
    # The normal approximation with the continuity correction, good to a percent at this size.
    z = (abs(-300) - 1) / np.sqrt(20_300)
    assert p(10_000, 10_300) == pytest.approx(2 * 0.5 * float(torch.erfc(torch.tensor(z / np.sqrt(2)))), rel=0.01)


def test_mcnemar_wants_the_same_examples() -> None:
    """Told."""
    with pytest.raises(errors.UsageError, match="same examples"):
        mcnemar([True], [True, False])


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_calibration(bins: int) -> None:
    """Equal-mass bins, as the oracle sorts and cuts; 0 where confidence is accuracy."""
    logits = GENERATOR.normal(size=(150, 4)) * 2
    labels = GENERATOR.integers(0, 4, 150)
    rows = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert calibration_error(logits, labels, bins) == pytest.approx(oracle.calibration(rows, labels, bins), abs=1e-12)
    sure = np.array([[50.0, 0.0]] * 4)
    assert calibration_error(sure, [0, 0, 0, 0], bins) == pytest.approx(0.0, abs=1e-12)
    assert calibration_error(sure, [0, 0, 1, 1], 1) == pytest.approx(0.5, abs=1e-12)


def test_accuracy_and_loss() -> None:
    """As torch has them."""
    logits, labels = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 5
    expected = torch.nn.functional.cross_entropy(3.0 * logits.double(), labels).item()
    assert cross_entropy(logits, labels, 3.0) == pytest.approx(expected, rel=1e-12)
    assert accuracy(logits, labels) == (logits.argmax(1) == labels).double().mean().item()


X = GENERATOR.normal(size=(200, 6))
LABELS = GENERATOR.integers(0, 3, 200)


def linear(weights: np.ndarray) -> np.ndarray:
    """Logits of a linear model."""
    return X @ weights


def tanh(weights: np.ndarray) -> np.ndarray:
    """Logits of an MLP with one hidden layer of 8."""
    return np.tanh(X @ weights[:48].reshape(6, 8)) @ weights[48:].reshape(8, 3)


@pytest.mark.parametrize("alpha", [0.25, 0.5])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_linear_model_s_soup_is_its_ensemble(alpha: float, temperature: float) -> None:
    """Both sides are 0: exactly the actual one, to the error of the central difference the predicted one."""
    one, other = np.random.default_rng(4).normal(size=(2, 6, 3))
    gap = soup_against_ensemble(
        lambda a: linear((1 - a) * one + a * other), LABELS, alpha=alpha, temperature=temperature, step=1e-4
    )
    assert gap.actual == pytest.approx(0.0, abs=1e-14)
    assert gap.predicted == pytest.approx(0.0, abs=1e-5)


def test_a_tanh_network_at_small_and_large_steps() -> None:
    """Within 2 % where the models lie close, far off where they do not."""
    start, direction = np.random.default_rng(6).normal(size=(2, 72)) * [[0.7], [1.0]]

    def gap(size: float) -> tuple[float, float]:
        end = start + size * direction
        found = soup_against_ensemble(lambda a: tanh((1 - a) * start + a * end), LABELS, step=1e-2)
        return found.predicted, found.actual

    predicted, actual = gap(0.02)
    assert predicted == pytest.approx(actual, rel=0.02)
    assert actual != 0.0
    predicted, actual = gap(3.0)
    assert abs(predicted - actual) > 0.2 * abs(actual)


def test_places_outside() -> None:
    """An ensemble has no weight beyond its members."""
    with pytest.raises(errors.ParameterError, match="0 to 1"):
        soup_against_ensemble(lambda a: X[:, :3], LABELS, alpha=1.5)
