"""The methods whose formula is one line, written naively in float64 from that line; no line of stockpot is used."""

import math

import numpy as np
from tests.oracles.exact import numbers


def linear(models, weight=None, normalize=True):
    """sum_i weight_i w_i, the weights divided by their sum under normalize; flat."""
    weight = [1.0] * len(models) if weight is None else list(weight)
    total = math.fsum(weight) if normalize else 1.0
    return sum((a / total) * numbers(model) for a, model in zip(weight, models, strict=True))


def wise_ft(base, model, alpha=0.5):
    """(1 - alpha) w0 + alpha w1; flat."""
    return (1 - alpha) * numbers(base) + alpha * numbers(model)


def task_arithmetic(base, models, weight, scale=1.0, normalize=False):
    """w0 + scale sum_i weight_i (w_i - w0), the weights divided by their sum under normalize; flat."""
    total = math.fsum(weight) if normalize else 1.0
    anchor = numbers(base)
    return anchor + scale * sum((a / total) * (numbers(m) - anchor) for a, m in zip(weight, models, strict=True))


def slerp_weights(one, two, t, parallel=0.9995):
    """The weights of the two inputs: sin((1-t) theta)/sin(theta) and sin(t theta)/sin(theta).

    1 - t and t where the two are nearly parallel, or one of them is zero.
    """
    x, y = numbers(one), numbers(two)
    lengths = math.sqrt(math.fsum(x * x)) * math.sqrt(math.fsum(y * y))
    cosine = math.fsum(x * y) / lengths if lengths else 1.0
    if abs(cosine) > parallel:
        return np.array([1 - t, t])
    angle = math.acos(cosine)
    return np.array([math.sin((1 - t) * angle), math.sin(t * angle)]) / math.sin(angle)


def slerp(one, two, t):
    """Spherical interpolation from one (t = 0) to two (t = 1); flat."""
    weights = slerp_weights(one, two, t)
    return weights[0] * numbers(one) + weights[1] * numbers(two)
