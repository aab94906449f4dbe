"""The plane through three points of weight space, from Gram matrices alone.

A point is given by its weights over the task vectors, as in ``_shape``: w0 + sum_i a_i d_i.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stockpot.measure._gram import Array, deltas

ON_ONE_LINE = 1e-12
"""Squared sine under this: inner products in float64 cannot tell the third point from the line through the others."""


@dataclass(frozen=True)
class Plane:
    """A plane with an orthonormal basis: ``origin`` and ``axes`` (shape ``(2, N)``) are weights over the task vectors.

    With points p, q, r: u1 = q - p, u2 = (r - p) less its part along u1, each divided by its length. Coordinates are
    distances in the weights' own unit.
    """

    origin: Array
    axes: Array

    def point(self, x: float, y: float) -> Array:
        """Weights over the task vectors of the point at these coordinates, shape ``(N,)``."""
        return np.asarray(self.origin + x * self.axes[0] + y * self.axes[1])

    def place(self, grams: Array, weights: Array) -> tuple[float, float, float]:
        """Coordinates of a point's foot in the plane, and its distance from the plane.

        ``grams``: shape ``(G, N+1, N+1)``; ``weights``: shape ``(G, N)``, for a point with weights of its own in each
        group. The plane's own weights are the same in all groups.
        """
        inner = deltas(grams)
        step = weights - self.origin
        along = np.einsum("gi,gij,kj->k", step, inner, self.axes)
        rest = step - along @ self.axes
        squared = float(np.einsum("gi,gij,gj->", rest, inner, rest))
        return float(along[0]), float(along[1]), float(np.sqrt(max(squared, 0.0)))


def plane_through(gram: Array, points: Array) -> Plane | None:
    """The plane through three points, shape ``(3, N)``; None where they lie on one line.

    ``gram``: one matrix over the whole model.
    """
    inner = deltas(gram)
    first, second = points[1] - points[0], points[2] - points[0]
    lengths = [float(step @ inner @ step) for step in (first, second)]
    if min(lengths) <= 0.0:
        return None
    one = first / np.sqrt(lengths[0])
    other = second / np.sqrt(lengths[1])
    for _ in range(2):  # the second time takes away what rounding has left of the first axis
        other = other - (other @ inner @ one) * one
    squared = float(other @ inner @ other)
    if squared <= ON_ONE_LINE:
        return None
    return Plane(points[0], np.stack([one, other / np.sqrt(squared)]))
