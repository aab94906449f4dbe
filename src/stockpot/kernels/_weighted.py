"""Means of which every element has weights of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stockpot.kernels import _native
from stockpot.kernels._low_rank import widened
from stockpot.kernels._plain_trim import store
from stockpot.kernels._rows import NonFiniteInputError, OverflowedError, Row, cut, first_nonfinite, mix

STEP = 1 << 16
"""Elements that are worked on at once: what is wide of them stays in the caches."""


def read_wide(row: Row) -> NDArray[np.float64]:
    """A row on the CPU as float64, exactly; where its file was cut off since, LostPagesError instead of a signal."""
    return widened(row if _native.library() is None else Row(row.dtype, _native.copied(row)))


def write_wide(values: NDArray[np.float64], out: Row) -> None:
    """Doubles into a row on the CPU, rounded once, to nearest, ties to even."""
    with np.errstate(all="ignore"):
        store(values, out)


def first_negative(row: Row) -> int:
    """Index of the first element below zero, -1 where there is none. Cost: one read."""
    for start in range(0, len(row), STEP):
        below = read_wide(row.cut(start, min(start + STEP, len(row)))) < 0.0
        if below.any():
            return start + int(np.argmax(below))
    return -1


def weighted(
    rows: Sequence[Row],
    weights: NDArray[np.float64],
    values: Sequence[Row],
    out: Row,
    *,
    pass_nonfinite: bool = False,
) -> None:
    """out = sum_i a_i w_i with a_i = weights_i v_i / sum_j weights_j v_j, each element by itself, rounded once.

    ``weights``: 0 or more; ``values``: v_i, 0 or more, one row for each of ``rows``. Where all v are equal, or
    zero, or there are none, and where only those of weight zero are not zero, the bits of ``mix``. Elsewhere the sum is
    taken in float64 as w_k - sum_i a_i (w_k - w_i), k the input of the largest share. Raises NonFiniteInputError and
    OverflowedError, as ``mix``. Cost: two reads, one write.
    """
    mix(rows, weights / weights.sum(), out, pass_nonfinite=True)
    if not pass_nonfinite:
        for number, row in enumerate((*rows, *values)):
            if (at := first_nonfinite(row)) >= 0:
                raise NonFiniteInputError(number, at)
    for start in range(0, len(out) if values else 0, STEP):
        stop = min(start + STEP, len(out))
        _weigh(cut(rows, start, stop), cut(values, start, stop), weights, out.cut(start, stop))
    if not pass_nonfinite and (at := first_nonfinite(out)) >= 0:
        raise OverflowedError(at)


def _weigh(rows: Sequence[Row], values: Sequence[Row], weights: NDArray[np.float64], out: Row) -> None:
    """Some elements, those of them whose values differ."""
    wide = np.stack([read_wide(row) for row in values])
    most = wide.max(axis=0)
    differ = np.flatnonzero(wide.min(axis=0) != most)
    if not differ.size:
        return
    with np.errstate(all="ignore"):
        shares = weights[:, None] * (wide[:, differ] / most[differ])  # in units of the largest: no scale of v matters
        total = shares.sum(axis=0)
        shares /= total
        held = np.stack([read_wide(row)[differ] for row in rows])
        anchor = np.take_along_axis(held, shares.argmax(axis=0)[None], axis=0)[0]
        found = anchor - (shares * (anchor - held)).sum(axis=0)
        result = widened(out)
        result[differ] = np.where(total > 0.0, found, result[differ])
        store(result, out)
