"""Spherical interpolation between two models."""

from __future__ import annotations

import numpy as np

from stockpot.measure import Array
from stockpot.methods._base import Mixture, coefficients

NEARLY_PARALLEL = 0.9995


@coefficients(
    base="member",
    models=(1, 2),
    affine=False,
    reference="Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985",
)
def slerp(raw_gram: Array, *, t: float) -> Mixture:
    """Spherical interpolation between two models, tensor by tensor.

    w = sin((1-t) theta)/sin(theta) w0 + sin(t theta)/sin(theta) w1, with theta the angle between the two tensors as
    vectors; plain interpolation where they are nearly parallel (|cos| > 0.9995) or one is zero.

    Arguments: ``raw_gram``, inner products of (w0, w1); ``t``, 0 (the base, or the first model) to 1 (the other).
    Returns weights ``(..., 2)``. Cost: two passes over tensors larger than the memory budget, else one.

    >>> import numpy as np
    >>> from stockpot.methods import get_method
    >>> get_method("slerp")(np.eye(2), {"t": 0.5}).weights.round(4)
    array([0.7071, 0.7071])
    """
    lengths = np.sqrt(np.diagonal(raw_gram, axis1=-2, axis2=-1))
    moved = (lengths > 0).all(axis=-1)
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    cosine = np.clip(np.where(moved, raw_gram[..., 0, 1] * inverse[..., 0] * inverse[..., 1], 1.0), -1.0, 1.0)
    plain = np.abs(cosine) > NEARLY_PARALLEL
    theta = np.arccos(np.where(plain, 0.0, cosine))
    sine = np.sin(theta)
    weights = np.stack(
        [
            np.where(plain, 1.0 - t, np.sin((1.0 - t) * theta) / sine),
            np.where(plain, t, np.sin(t * theta) / sine),
        ],
        axis=-1,
    )
    return Mixture(weights, fallback=np.asarray(plain))
