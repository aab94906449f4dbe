"""Spherical interpolation between two models: slerp, nuslerp."""

from __future__ import annotations

import numpy as np

from stockpot.measure import Array
from stockpot.methods._base import Mixture, PerModel, coefficients, each, normalized

NEARLY_PARALLEL = 0.9995
"""Cosine beyond which slerp interpolates plainly, as the field's does."""
PARALLEL = 1 - 1e-12
"""Cosine beyond which two vectors have no plane to turn in: nuslerp follows the arc up to here."""


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
    return _between(raw_gram, t, NEARLY_PARALLEL)


@coefficients(
    base="optional",
    models=(2, 2),
    affine=False,
    granularity="tensor",
    recipe_required=("weight",),
    reference="Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985",
)
def nuslerp(span: Array, *, weight: PerModel = (1.0,)) -> Mixture:
    """Spherical interpolation between two models by their weights; with a base, between their task vectors.

    w = sin((1-t) theta)/sin(theta) w1 + sin(t theta)/sin(theta) w2, with t = weight_2 / (weight_1 + weight_2) and theta
    the angle between them; with a base w0, w - w0 is made so of w1 - w0 and w2 - w0. Plain interpolation where they are
    parallel or opposite (|cos| > 1 - 1e-12) or one is zero: unlike ``slerp`` it follows the arc of small angles too.

    Arguments: ``span``, inner products of the two; ``weight``, one for each, which need not sum to one; granularity
    ``row`` interpolates each output channel by itself (``nuslerp_flatten: false`` of the field's recipes; its
    ``nuslerp_row_wise: true``, column by column, is refused with it). Returns weights ``(..., 2)``. Raises
    ParameterError where the weights sum to zero. Cost: two passes over tensors larger than the memory budget, else one.

    >>> import numpy as np
    >>> from stockpot.methods import get_method
    >>> get_method("nuslerp")(np.eye(2), {"weight": (1.0, 3.0)}).weights.round(4)
    array([0.3827, 0.9239])
    """
    return _between(span, float(normalized("nuslerp", each(weight, 2), switch=None)[1]), PARALLEL)


def _between(gram: Array, t: float, parallel: float) -> Mixture:
    """Weights of the point at ``t`` of the arc between two vectors, from their inner products."""
    lengths = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    moved = (lengths > 0).all(axis=-1)
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    cosine = np.clip(np.where(moved, gram[..., 0, 1] * inverse[..., 0] * inverse[..., 1], 1.0), -1.0, 1.0)
    plain = np.abs(cosine) > parallel
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
