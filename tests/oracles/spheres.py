"""Means on the sphere, by their definitions, on vectors and not on inner products; no line of stockpot is used."""

import numpy as np
from tests.oracles.exact import numbers
from tests.oracles.linear import slerp_weights


def nuslerp(one, two, weight):
    """The point of the arc between two vectors at weight_2 / (weight_1 + weight_2); flat."""
    kept = slerp_weights(one, two, weight[1] / sum(weight), parallel=1 - 1e-12)
    return kept[0] * numbers(one) + kept[1] * numbers(two)


def multislerp(vectors, weight, normalize=True):
    """Unit vectors averaged; on from that direction in its tangent space; the weighted mean length; flat."""
    weight = np.array(weight) / (sum(weight) if normalize else 1.0)
    flat = [numbers(vector) for vector in vectors]
    lengths = np.array([np.linalg.norm(vector) for vector in flat])
    units = [vector / length if length else vector for vector, length in zip(flat, lengths, strict=True)]
    mean = sum(a * unit for a, unit in zip(weight, units, strict=True))
    mean = mean / np.linalg.norm(mean)
    tangent = sum(a * (unit - (unit @ mean) * mean) for a, unit in zip(weight, units, strict=True))
    far = np.linalg.norm(tangent)
    return (weight @ lengths) * (np.cos(far) * mean + np.sinc(far / np.pi) * tangent)


def karcher(vectors, max_iter=10, tol=1e-5):
    """Fixed-point steps of the mean on the sphere, scaled by the mean length; flat."""
    flat = [numbers(vector) for vector in vectors]
    lengths = [np.linalg.norm(vector) for vector in flat]
    units = [vector / length for vector, length in zip(flat, lengths, strict=True) if length]
    mean = sum(units) / len(units)
    mean = mean / np.linalg.norm(mean)
    for _ in range(max_iter):
        step = np.zeros_like(mean)
        for unit in units:
            across = unit - (unit @ mean) * mean
            angle = np.arctan2(np.linalg.norm(across), unit @ mean)
            if angle > tol:
                step += angle / np.linalg.norm(across) * across / len(units)
        far = np.linalg.norm(step)
        if far <= tol:
            break
        mean = np.cos(far) * mean + np.sin(far) / far * step
    return np.mean(lengths) * mean
