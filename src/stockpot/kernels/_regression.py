"""The matrix whose products with several sets of rows are nearest to those of several matrices, each with its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from stockpot.kernels._shapes import Float64

EPSILON = float(np.finfo(np.float64).eps)


def regressed(
    weights: Sequence[Float64[np.ndarray, "outputs inputs"]], grams: Iterable[Float64[np.ndarray, "inputs inputs"]]
) -> Float64[np.ndarray, "outputs inputs"]:
    """W = (sum_i W_i G_i) (sum_i G_i)^-1, as M - (sum_i (M - W_i) G_i) S^+ with M the plain mean and S = sum_i G_i.

    Where S is singular S^+ is its pseudo-inverse: of all W that solve W S = sum_i W_i G_i the nearest to M. Equal
    weights give their own bits. Cost: inputs^3 + (N + 1) outputs inputs^2; one G at a time.
    """
    mean = weights[0] - sum((weights[0] - one for one in weights[1:]), np.zeros_like(weights[0])) / len(weights)
    total = np.zeros((mean.shape[1], mean.shape[1]))
    moved = np.zeros_like(mean)
    for one, gram in zip(weights, grams, strict=True):
        total += gram
        moved += (mean - one) @ gram
    step = _divided(moved, total)
    return np.where(step == 0.0, mean, mean - step)


def _divided(left: NDArray[np.float64], gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """left gram^+ for a positive semi-definite matrix; by its factors, where it is far from singular."""
    scale = np.sqrt(np.diagonal(gram))
    scale[scale == 0.0] = 1.0
    # With a diagonal of ones the scale of an input does not matter; an input that is never there is left as it is.
    even = gram / scale / scale[:, None]
    even[np.diag_indices_from(even)] = 1.0
    try:
        pivots = np.diagonal(np.linalg.cholesky(even)) ** 2
    except np.linalg.LinAlgError:
        pivots = np.zeros(1)
    if pivots.min(initial=1.0) > len(gram) * EPSILON:
        return np.asarray(np.linalg.solve(even, (left / scale).T).T / scale)
    values, vectors = np.linalg.eigh(gram)
    kept = values > len(gram) * EPSILON * values[-1]
    return np.asarray(((left @ vectors[:, kept]) / values[kept]) @ vectors[:, kept].T)
