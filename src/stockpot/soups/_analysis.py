"""Numbers about predictions: accuracy, calibration, significance, and when a soup is as good as an ensemble."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stockpot import errors

Floats = NDArray[np.float64]
EXACT_UP_TO = 5000
"""Disagreements that are counted in whole numbers; more by logarithms, to about ten digits."""


def accuracy(logits: Any, labels: Any) -> float:
    """Share of examples whose largest logit is their label's."""
    return float((np.asarray(logits).argmax(axis=1) == np.asarray(labels)).mean())


def cross_entropy(logits: Any, labels: Any, temperature: float = 1.0) -> float:
    """Mean of -log softmax(b f(x))_y in nats, b the inverse temperature ``temperature``."""
    rows = log_softmax(temperature * np.asarray(logits, dtype=np.float64))
    return float(-rows[np.arange(len(rows)), np.asarray(labels)].mean())


def calibration_error(logits: Any, labels: Any, bins: int = 15) -> float:
    """Expected calibration error with bins of equal mass: sum_b n_b / n |accuracy(b) - confidence(b)|.

    Examples are sorted by the largest probability and cut into ``bins`` of (nearly) equal size. Lower is better;
    soups do not improve it, ensembles do. Reference: Wortsman et al., arXiv 2203.05482, appendix; Nixon et al.,
    arXiv 1904.01685 (equal mass).

    >>> calibration_error([[0.0, 40.0], [0.0, 40.0]], [1, 0], bins=1)
    0.5
    """
    if bins < 1:
        raise errors.ParameterError("bins of a calibration error", expected="1 or more", got=bins)
    probabilities = np.exp(log_softmax(np.asarray(logits, dtype=np.float64)))
    if not len(probabilities):
        raise errors.UsageError("there are no examples to be calibrated on")
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == np.asarray(labels)).astype(np.float64)
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    return float(sum(len(part) * abs(right[part].mean() - confidence[part].mean()) for part in parts) / len(order))


def mcnemar(first: Any, second: Any) -> float:
    """Exact two-sided p of McNemar's test: are two models' errors on the same examples as likely?

    ``first``, ``second``: whether each example was read rightly. With b and c the examples that only one of them reads
    rightly, p = min(1, 2 P(X <= min(b, c))), X ~ Binomial(b + c, 1/2); 1 where they never differ.

    >>> mcnemar([True] * 6 + [False], [False] * 6 + [True])
    0.125
    """
    one, other = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if one.shape != other.shape:
        raise errors.UsageError("two models are compared on the same examples", expected=one.shape, got=other.shape)
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    count, least = only_one + only_other, min(only_one, only_other)
    if count <= EXACT_UP_TO:
        ways, total = 1, 1
        for k in range(least):
            ways = ways * (count - k) // (k + 1)
            total += ways
        return min(1.0, total / 2 ** (count - 1)) if count else 1.0
    logs = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(least + 1)]
    most = max(logs)
    log_p = most + math.log(math.fsum(math.exp(one - most) for one in logs)) - (count - 1) * math.log(2.0)
    return min(1.0, math.exp(log_p))


@dataclass(frozen=True)
class Gap:
    """Loss of the soup less loss of the logit ensemble: ``actual``, and as the approximation ``predicted`` it."""

    predicted: float
    actual: float


def soup_against_ensemble(
    logits_at: Callable[[float], Any],
    labels: Any,
    *,
    alpha: float = 0.5,
    temperature: float = 1.0,
    step: float = 1e-2,
) -> Gap:
    """When a soup is as good as an ensemble, for w_a = (1 - a) w_0 + a w_1.

    L_soup - L_ens ~ a (1 - a) / 2 * ( -d2 L_soup / da2 + b^2 E_x Var_{Y ~ softmax(b f(x; w_a))} [ D f_Y(x) ] ),
    D f = f(w_1) - f(w_0), L the cross-entropy of b f, b the inverse temperature. Both sides are 0 for linear models; it
    holds for small steps between the models and breaks at large ones.

    Arguments: ``logits_at(a)``, logits of w_a on the examples, shape ``(examples, classes)``; ``labels``; ``alpha``
    within 0 and 1; ``step`` of the second derivative by central differences. Cost: five evaluations. Reference:
    Wortsman et al., arXiv 2203.05482, section 4.
    """
    if not 0.0 <= alpha <= 1.0:
        raise errors.ParameterError("the place between two models", expected="0 to 1", got=alpha)

    def loss(found: Floats) -> float:
        return cross_entropy(found, labels, temperature)

    middle, before, after = (_wide(logits_at(place)) for place in (alpha, alpha - step, alpha + step))
    start, end = _wide(logits_at(0.0)), _wide(logits_at(1.0))
    curvature = (loss(before) - 2.0 * loss(middle) + loss(after)) / step**2
    probabilities = np.exp(log_softmax(temperature * middle))
    difference = end - start
    mean = (probabilities * difference).sum(axis=1)
    variance = float(((probabilities * difference**2).sum(axis=1) - mean**2).mean())
    predicted = alpha * (1.0 - alpha) / 2.0 * (-curvature + temperature**2 * variance)
    return Gap(predicted, loss(middle) - loss((1.0 - alpha) * start + alpha * end))


def log_softmax(logits: Floats) -> Floats:
    """Rows of log-probabilities."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _wide(logits: Any) -> Floats:
    return np.asarray(logits.detach().cpu() if hasattr(logits, "detach") else logits, dtype=np.float64)
