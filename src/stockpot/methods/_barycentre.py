"""Means of several models on a sphere: multislerp, karcher. A mean of directions, with a mean of lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stockpot import errors
from stockpot.measure import Array
from stockpot.methods._base import Mixture, PerModel, coefficients, each, normalized

OPPOSITE = 1e-6
"""Length of a mean of unit vectors under which they have no common direction."""


@coefficients(
    base="optional",
    models=(2, None),
    affine=False,
    granularity="tensor",
    recipe_required=("weight",),
    reference="Buss and Fillmore, Spherical averages and applications, ACM Transactions on Graphics 20(2), 2001",
)
def multislerp(span: Array, *, weight: PerModel = (1.0,), normalize_weights: bool = True, eps: float = 1e-8) -> Mixture:
    """Spherical average of several models by their weights; with a base, of their task vectors.

    With unit vectors u_i = w_i / |w_i|: w = (sum_i weight_i |w_i|) m / |m|, m = sum_i weight_i u_i, which is the
    direction of the weighted mean of directions, with the weighted mean of lengths. (The field's form walks on from
    m/|m| in its tangent space by sum_i weight_i (u_i - <u_i, m> m / |m|^2), which is zero.) With a base w0 this is
    w - w0, of the differences w_i - w0.

    Arguments: ``span``, inner products of the models; ``weight``, one for each; ``normalize_weights``, divide them by
    their sum, which matters to the length alone; ``eps`` is read and has no effect. Where there is no common direction
    (|m| under 1e-6) the result is the plain weighted mean. Returns weights ``(..., N)``. Raises ParameterError where
    the weights sum to zero under ``normalize_weights``. Cost: two passes over tensors larger than the memory budget,
    else one.

    >>> import numpy as np
    >>> from stockpot.methods import get_method
    >>> get_method("multislerp")(np.diag([1.0, 4.0]), {"weight": (1.0, 1.0)}).weights.round(4)
    array([1.0607, 0.5303])
    """
    weights = each(weight, span.shape[-1])
    if normalize_weights:
        weights = normalized("multislerp", weights, switch="normalize_weights")
    lengths, cosines = _directions(span)
    length = np.sqrt(np.maximum(np.einsum("i,...ij,j->...", weights, cosines, weights), 0.0))
    none = np.asarray(length <= OPPOSITE * np.abs(weights).sum())
    scale = np.divide(lengths @ weights, length, out=np.zeros_like(length), where=~none)
    return Mixture(_of_directions(scale[..., None] * weights, lengths, weights, none), fallback=none)


@coefficients(
    base="unused",
    models=(2, None),
    affine=False,
    granularity="tensor",
    reference="Karcher, Riemannian center of mass and mollifier smoothing, Comm. Pure Appl. Math. 30, 1977",
)
def karcher(raw_gram: Array, *, max_iter: int = 10, tol: float = 1e-5) -> Mixture:
    """Karcher (Riemannian) mean of the models' directions on the sphere, with their mean length.

    m minimises sum_i theta(m, u_i)^2 over unit vectors, u_i = w_i / |w_i|, by steps
    v = 1/N sum_i theta_i / sin(theta_i) (u_i - cos(theta_i) m), m <- cos|v| m + sin|v| v/|v| from the mean direction
    on; w = (1/N sum_i |w_i|) m. A model of length zero has no direction and counts in the length alone.

    Arguments: ``raw_gram``, inner products of the models; ``max_iter``, steps at most; ``tol``, radians under which a
    step ends it. Where there is no common direction to begin with, the result is the plain mean. Returns weights
    ``(..., N)``. Cost: two passes over tensors larger than the memory budget, else one.

    >>> import numpy as np
    >>> from stockpot.methods import get_method
    >>> get_method("karcher")(np.eye(3), {"max_iter": 10, "tol": 1e-5}).weights.round(4)
    array([0.5774, 0.5774, 0.5774])
    """
    if max_iter < 1 or tol < 0.0:
        raise errors.ParameterError("karcher takes steps", expected="max_iter 1 or more, tol 0 or more",
                                    got=f"{max_iter}, {tol}")  # fmt: skip
    lengths, cosines = _directions(raw_gram)
    known = (lengths > 0).astype(np.float64)
    count = np.maximum(known.sum(axis=-1, keepdims=True), 1.0)
    place = known / count  # the mean, by its coefficients on the unit vectors
    length = np.sqrt(np.maximum(_inner(place, cosines, place), 0.0))
    none = np.asarray(length <= OPPOSITE)
    place = place / np.where(none, 1.0, length)[..., None]
    moving = ~none
    for _ in range(max_iter):
        towards = np.clip(np.einsum("...ij,...j->...i", cosines, place), -1.0, 1.0)
        angles = np.arccos(towards)
        sines = np.sqrt(np.maximum(1.0 - towards * towards, 0.0))
        pull = np.where(known * angles > tol, np.divide(angles, sines, out=np.ones_like(sines), where=sines > 0), 0.0)
        step = (pull - (pull * towards).sum(axis=-1, keepdims=True) * place) / count
        far = np.sqrt(np.maximum(_inner(step, cosines, step), 0.0))
        moving = moving & (far > tol)
        if not moving.any():
            break
        turn = np.where(moving, far, 0.0)[..., None]
        ahead = np.divide(np.sin(turn), far[..., None], out=np.zeros_like(turn), where=far[..., None] > 0)
        place = np.cos(turn) * place + ahead * step
        place = place / np.sqrt(np.maximum(_inner(place, cosines, place), OPPOSITE**2))[..., None]
    mean = lengths.mean(axis=-1, keepdims=True)
    return Mixture(
        _of_directions(mean * place, lengths, np.full(lengths.shape[-1], 1 / lengths.shape[-1]), none), fallback=none
    )


def _directions(gram: Array) -> tuple[Array, Array]:
    """Lengths of vectors, and inner products of their directions; of one of length zero, zero."""
    lengths = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return lengths, gram * inverse[..., :, None] * inverse[..., None, :]


def _inner(left: Array, cosines: Array, right: Array) -> Array:
    return np.asarray(np.einsum("...i,...ij,...j->...", left, cosines, right))


def _of_directions(along: Array, lengths: Array, plain: Array, none: NDArray[np.bool_]) -> Array:
    """Weights of the vectors from weights of their directions; the plain ones where there is no common direction."""
    found = np.divide(along, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return np.where(none[..., None], plain, found)
