"""Numbers about task vectors, from Gram matrices alone.

A Gram matrix here has shape ``(..., N+1, N+1)``, float64: inner products of ``(w0, d_1 .. d_N)`` with
``d_i = w_i - w0``; leading axes are groups (rows of a tensor, say). Index 0 is the anchor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def deltas(gram: Array) -> Array:
    """Inner products of the task vectors alone, shape ``(..., N, N)``."""
    return gram[..., 1:, 1:]


def norms(gram: Array) -> Array:
    """|d_i|, shape ``(..., N)``."""
    return np.sqrt(np.maximum(np.diagonal(deltas(gram), axis1=-2, axis2=-1), 0.0))


def cosines(gram: Array) -> Array:
    """<d_i, d_j> / (|d_i| |d_j|), shape ``(..., N, N)``, clipped to [-1, 1]; 0 where a task vector is zero.

    Scale-free: each row and column is divided by its own norm, so that no product of tiny norms underflows. Equal task
    vectors have cosine 1 exactly, whatever the division rounds to.
    """
    length = norms(gram)
    inverse = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    inner = deltas(gram)
    scaled = inner * inverse[..., :, None] * inverse[..., None, :]
    return np.where(are_equal(gram), 1.0, np.clip(scaled, -1.0, 1.0))


def are_equal(gram: Array) -> NDArray[np.bool_]:
    """Which task vectors are equal, by |a|^2 = |b|^2 = <a, b> > 0, shape ``(..., N, N)``."""
    inner = deltas(gram)
    squares = np.diagonal(inner, axis1=-2, axis2=-1)
    return np.asarray((inner == squares[..., :, None]) & (inner == squares[..., None, :]) & (inner > 0))


def mean_cosine(gram: Array) -> Array:
    """Arithmetic mean of the cosines over all pairs i < j, shape ``(...)``.

    The mean of the cosines, not the cosine of the mean angle (Model Stock's authors, answering users).
    """
    pairs = cosines(gram)
    first, second = np.triu_indices(pairs.shape[-1], k=1)
    # Contiguous, so that numpy adds in one order whether the matrix came alone or in a stack.
    return np.asarray(np.ascontiguousarray(pairs[..., first, second]).mean(axis=-1))


def is_frozen(gram: Array) -> NDArray[np.bool_]:
    """Whether every task vector is zero, shape ``(...)``."""
    return np.asarray(np.all(norms(gram) == 0.0, axis=-1))


def pack(gram: Array) -> Array:
    """Upper triangle, row by row, shape ``(..., (N+1)(N+2)/2)``: the form in which Grams are stored."""
    rows, columns = np.triu_indices(gram.shape[-1])
    return np.ascontiguousarray(gram[..., rows, columns])


def unpack(packed: Array, size: int) -> Array:
    """The symmetric matrices back from ``pack``."""
    rows, columns = np.triu_indices(size)
    gram = np.empty((*packed.shape[:-1], size, size))
    gram[..., rows, columns] = packed
    gram[..., columns, rows] = packed
    return gram
