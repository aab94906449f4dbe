"""Fisher averaging and RegMean, written naively in float64 from their papers' formulas; no line of stockpot is used."""

import numpy as np
from tests.oracles.exact import numbers


def fisher(models, values, weight=None):
    """sum_i a_i F_i w_i / sum_i a_i F_i, one element after the other; the weighted mean where all F are zero; flat."""
    weight = [1.0] * len(models) if weight is None else list(weight)
    found = []
    for own, seen in zip(np.stack([*map(numbers, models)], 1), np.stack([*map(numbers, values)], 1), strict=True):
        total = sum(a * f for a, f in zip(weight, seen, strict=True))
        if not total:
            seen, total = [1.0] * len(own), sum(weight)
        found.append(sum(a * f * w for a, f, w in zip(weight, seen, own, strict=True)) / total)
    return np.array(found)


def regmean(weights, grams, alpha):
    """(sum_i G_i)^-1 sum_i G_i W_i with W_i of shape (inputs, outputs), off-diagonals of G_i multiplied by alpha."""
    shrunk = [alpha * gram + (1.0 - alpha) * np.diag(np.diag(gram)) for gram in grams]
    return np.linalg.inv(sum(shrunk)) @ sum(gram @ weight for gram, weight in zip(shrunk, weights, strict=True))


def pooled_least_squares(weights, rows):
    """The W, of shape (inputs, outputs), with the least sum_i |X_i W - X_i W_i|^2, by lstsq over all rows at once."""
    return np.linalg.lstsq(
        np.concatenate(rows), np.concatenate([x @ w for x, w in zip(rows, weights, strict=True)]), rcond=None
    )[0]
