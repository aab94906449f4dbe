"""Angles, norms and distances of task vectors, from whole tensors in the widest floats numpy has, as textbooks say."""

from __future__ import annotations

import numpy as np


def wide(tensor) -> np.ndarray:
    """Flat, in long double."""
    return tensor.detach().double().numpy().astype(np.longdouble).reshape(-1)


def norm(vector) -> float:
    """Euclidean length."""
    return float(np.sqrt((vector * vector).sum()))


def angle(one, other) -> float:
    """Kahan's formula: 2 atan2(| |b| a - |a| b |, | |b| a + |a| b |), accurate for tiny angles too."""
    a, b = np.sqrt((one * one).sum()), np.sqrt((other * other).sum())
    less, more = b * one - a * other, b * one + a * other
    return float(2 * np.arctan2(np.sqrt((less * less).sum()), np.sqrt((more * more).sum())))


def task_vectors(base, models) -> list[np.ndarray]:
    """w_i - w0."""
    return [wide(model) - wide(base) for model in models]


def principal_coordinates(points, dimensions) -> np.ndarray:
    """By singular values of the centred points themselves."""
    matrix = np.stack([np.asarray(point, dtype=np.float64) for point in points])
    centred = matrix - matrix.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    return left[:, :dimensions] * values[:dimensions]
