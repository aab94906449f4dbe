"""The shape that fine-tunes make around their base, from Gram matrices alone: angles, distances, coordinates.

Grams as in ``_gram``: ``(..., N+1, N+1)``, inner products of ``(w0, d_1 .. d_N)``. A point is a combination of the
models: affine weights over ``(w0, w_1 .. w_N)``; its place relative to w0 is ``sum_i a_i d_i``.
"""

from __future__ import annotations

import numpy as np

from stockpot.measure._gram import Array, are_equal, deltas


def pairs(count: int) -> tuple[tuple[int, int], ...]:
    """All i < j, in the order in which pairs are listed: 01, 02, .. 12, .."""
    return tuple((i, j) for i in range(count) for j in range(i + 1, count))


def pairwise(matrix: Array) -> Array:
    """The upper triangle without the diagonal, shape ``(..., N(N-1)/2)``, in the order of ``pairs``."""
    rows, columns = np.triu_indices(matrix.shape[-1], k=1)
    return np.array(matrix[..., rows, columns], dtype=np.float64, order="C")


def angles(gram: Array) -> Array:
    """Angle between each two task vectors in radians, shape ``(..., N(N-1)/2)``; a right angle where one is zero.

    From cosine and sine together, in the widest floats there are: an arc cosine loses half its digits near 0 and pi.
    """
    wide = deltas(gram).astype(np.longdouble)
    length = np.sqrt(np.maximum(np.diagonal(wide, axis1=-2, axis2=-1), 0))
    inverse = np.divide(1, length, out=np.zeros_like(length), where=length > 0)
    cosine = np.clip(wide * inverse[..., :, None] * inverse[..., None, :], -1, 1)
    found = np.arctan2(np.sqrt((1 - cosine) * (1 + cosine)), cosine)
    return pairwise(np.where(are_equal(gram), 0.0, found.astype(np.float64)))


def squared_distance(gram: Array, one: Array, other: Array) -> Array:
    """|p - q|^2 of two points given by their weights over the task vectors, shape ``(..., N)`` each."""
    step = one - other
    return np.asarray(np.maximum(np.einsum("...i,...ij,...j->...", step, deltas(gram), step), 0.0))


def distance(gram: Array, one: Array, other: Array) -> Array:
    """|p - q| of two points given by their weights over the task vectors."""
    return np.asarray(np.sqrt(squared_distance(gram, one, other)))


def coordinates(gram: Array, points: Array, dimensions: int = 2) -> tuple[Array, Array]:
    """Principal coordinates of points, shape ``(points, dimensions)``, and the share of the variance of each.

    ``gram``: one matrix. ``points``: weights over the task vectors, shape ``(points, N)``. Axes are those of the
    points' own scatter about their mean; each axis points so that its largest coordinate is positive.
    """
    centred = points - points.mean(axis=0)
    inner = centred @ deltas(gram) @ centred.T
    values, vectors = np.linalg.eigh((inner + inner.T) / 2.0)
    order = np.argsort(values)[::-1][:dimensions]
    kept = np.maximum(values[order], 0.0)
    found = vectors[:, order] * np.sqrt(kept)
    signs = np.sign(found[np.argmax(np.abs(found), axis=0), np.arange(found.shape[1])])
    total = np.maximum(values, 0.0).sum()
    shares = kept / total if total > 0 else np.zeros_like(kept)
    padded = np.zeros((len(points), dimensions))
    padded[:, : found.shape[1]] = found * np.where(signs == 0.0, 1.0, signs)
    return padded, np.pad(shares, (0, dimensions - len(shares)))
