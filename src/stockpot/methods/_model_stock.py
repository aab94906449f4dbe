"""Model Stock: from the angle between fine-tunes, how far to go from the anchor to their average."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stockpot import errors
from stockpot.measure import Array, deltas, is_frozen, mean_cosine
from stockpot.measure import norms as norms_of
from stockpot.methods._base import Mixture, coefficients

SINGULAR = 1e-6
"""Least eigenvalue of the Gram matrix, scaled to unit diagonal, under which ``norms=free`` is not solved."""
POLE = 1e-12


@coefficients(
    base="required",
    models=(2, None),
    granularity="tensor",
    reference="Jang, Yun, Han, Model Stock, ECCV 2024, arXiv 2403.19522",
    why_models="its ratio comes from the angle between fine-tunes; with one fine-tune use wise_ft",
)
def model_stock(
    gram: Array,
    *,
    negative: Literal["clamp", "raise", "allow"] = "clamp",
    norms: Literal["equal", "free"] = "equal",
) -> Mixture:
    """Model Stock: per layer, the point between the base and the average that lies closest to the centre.

    w_H = t m + (1 - t) w0,  t = N c / (1 + (N-1) c),  with m the mean of the N fine-tunes and c the mean over pairs of
    cos(d_i, d_j), d_i = w_i - w0. No hyper-parameter, no data.

    Arguments: ``gram``, inner products of (w0, d_1 .. d_N), shape ``(..., N+1, N+1)``; ``negative``, what c <= 0 means:
    ``clamp`` (t = 0, the base, recorded), ``raise``, or ``allow`` (extrapolate; refuses 1 + (N-1)c <= 1e-12);
    ``norms``: ``equal`` is the paper's; ``free`` (ours) drops the assumption of equal norms and solves G a = s 1 with s
    the mean off-diagonal inner product (non-negative least squares under ``clamp``; falls back to ``equal`` where G is
    singular).
    Returns weights ``(..., N+1)``, ratio, clamped, fallback. Raises MethodError under ``raise`` and at the pole.
    Cost: one pass for the inner products, one to combine; a tensor that fits the memory budget is read once.
    Reference: arXiv 2403.19522, equations 4 to 6; pairs by the authors' answer: mean of pairwise cosines.

    >>> import numpy as np
    >>> from stockpot.methods import get_method
    >>> gram = np.array([[0.0, 0, 0], [0, 1, 0.5], [0, 0.5, 1]])
    >>> get_method("model_stock")(gram, {}).ratio.round(4)
    np.float64(0.6667)
    """
    frozen = is_frozen(gram)
    n = gram.shape[-1] - 1
    fallback = np.zeros_like(frozen)
    free_steps = None
    if norms == "free":
        free_steps, free_clamped, fallback = _free(gram, negative)
    ratio, clamped = _equal(gram, frozen | (~fallback if free_steps is not None else False), negative)
    steps = np.repeat((ratio / n)[..., None], n, axis=-1)
    if free_steps is not None:
        ratio = np.where(fallback, ratio, free_steps.sum(axis=-1))
        steps = np.where(fallback[..., None], steps, free_steps)
        clamped = np.where(fallback, clamped, free_clamped)
    weights = np.concatenate([(1.0 - ratio)[..., None], steps], axis=-1)
    return Mixture(weights, np.where(frozen, np.nan, ratio), clamped & ~frozen, fallback & ~frozen)


def _equal(gram: Array, skip: NDArray[np.bool_], negative: str) -> tuple[Array, NDArray[np.bool_]]:
    """The paper's ratio t; zero where skipped."""
    n = gram.shape[-1] - 1
    cosine = np.minimum(mean_cosine(gram), 1.0)
    below = (cosine <= 0) & ~skip
    pole = 1.0 + (n - 1) * cosine
    if negative == "raise" and below.any():
        raise errors.MethodError(
            "the mean cosine between the task vectors is not positive",
            got=f"{cosine[below].min():.6g}",
            remedy="set negative=clamp to stay at the base there",
        )
    if negative == "allow" and (below & (pole <= POLE)).any():
        raise errors.MethodError(
            "the mean cosine lies at the formula's pole",
            expected=f"above {-1 / (n - 1):.6g}",
            got=f"{cosine.min():.6g}",
        )
    zero = skip | (below if negative == "clamp" else np.zeros_like(below))
    ratio = np.divide(n * cosine, pole, out=np.zeros_like(cosine), where=~zero)
    return ratio, below if negative == "clamp" else np.zeros_like(below)


def _free(gram: Array, negative: str) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """Steps a with G a = s 1, s the mean off-diagonal of G; (steps, clamped, fallback)."""
    n = gram.shape[-1] - 1
    lengths = norms_of(gram)
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    scaled = deltas(gram) * inverse[..., :, None] * inverse[..., None, :]
    fallback = np.linalg.eigvalsh(scaled)[..., 0] < SINGULAR
    # In units of the largest norm, so that deltas of 1e-12 and of 1e+12 meet the same numbers.
    unit = lengths.max(axis=-1, keepdims=True)
    unit = np.where(unit > 0, unit, 1.0)[..., None]
    matrix = np.where(fallback[..., None, None], np.eye(n), deltas(gram) / unit / unit)
    shared = (matrix.sum(axis=(-2, -1)) - np.trace(matrix, axis1=-2, axis2=-1)) / (n * (n - 1))
    target = np.repeat(shared[..., None], n, axis=-1)
    steps = np.linalg.solve(matrix, target[..., None])[..., 0]
    bad = ((shared <= 0) | (steps < 0).any(axis=-1)) & ~fallback
    if negative == "allow" or not bad.any():
        return steps, np.zeros_like(bad), fallback
    if negative == "raise":
        raise errors.MethodError(
            "norms=free has no solution with positive coefficients", remedy="set negative=clamp, or norms=equal"
        )
    steps = np.array(steps)
    for index in np.argwhere(bad):
        at = tuple(index)
        steps[at] = non_negative_least_squares(matrix[at], target[at]) if shared[at] > 0 else 0.0
    return steps, bad, fallback


def non_negative_least_squares(matrix: Array, target: Array) -> Array:
    """argmin |matrix a - target| over a >= 0, by Lawson and Hanson's active sets; matrix is small and regular."""
    n = matrix.shape[-1]
    passive = np.zeros(n, dtype=bool)
    solution = np.zeros(n)
    tolerance = 1e-13 * float(np.abs(matrix).max() * np.abs(target).max()) * n
    for _ in range(10 * n * n):
        gradient = matrix.T @ (target - matrix @ solution)
        gradient[passive] = -np.inf
        if passive.all() or gradient.max() <= tolerance:
            break
        passive[int(gradient.argmax())] = True
        while True:
            trial = np.zeros(n)
            trial[passive] = np.linalg.lstsq(matrix[:, passive], target, rcond=None)[0]
            if (trial[passive] > 0).all():
                break
            blocking = passive & (trial <= 0)
            step = float((solution[blocking] / (solution[blocking] - trial[blocking])).min())
            solution = solution + step * (trial - solution)
            passive &= solution > 1e-15 * max(float(solution.max()), 1e-300)
            solution[~passive] = 0.0
        solution = trial
    return solution
