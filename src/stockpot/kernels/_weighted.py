"""Means of which every element has weights of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stockpot.kernels._rows import NonFiniteInputError, OverflowedError, Row, cut, first_nonfinite, mix
from stockpot.kernels._wide import read_wide, widened, write_wide

STEP = 1 << 14
"""Elements that are worked on at once: what is wide of them stays in the caches."""


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

    ``weights``: 0 or more; ``values``: v_i, 0 or more, one row for each of ``rows``. Where all v are equal, or zero, or
    there are none, where only those of weight zero are not, and where all w are equal, the bits of ``mix``; where one
    input alone counts, its value. Elsewhere v is taken in units of its largest, so that no scale of it matters, and the
    sum in float64. Raises NonFiniteInputError and OverflowedError, as ``mix``. Cost: two reads, one write.
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
    wide, held = [read_wide(row) for row in values], [read_wide(row) for row in rows]
    most = np.maximum.reduce(wide)
    wanted = (np.minimum.reduce(wide) != most) & (np.minimum.reduce(held) != np.maximum.reduce(held))
    if not wanted.any():
        return
    with np.errstate(all="ignore"):
        for one, weight in zip(wide, weights, strict=True):
            one /= most
            one *= weight
        total = sum(wide[1:], wide[0].copy())
        wanted &= total > 0.0
        found = np.zeros_like(total)
        for one, own in zip(wide, held, strict=True):
            one /= total
            found += one * own
        for one, own in zip(wide, held, strict=True):  # a zero's sign is lost in a sum
            np.copyto(found, own, where=one == 1.0)
        write_wide(np.where(wanted, found, widened(out)), out)
