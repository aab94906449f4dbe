"""Ranks of magnitudes within rows, and sums of magnitudes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stockpot.kernels import _plain_trim
from stockpot.kernels._rows import Row
from stockpot.kernels._shapes import Float64
from stockpot.kernels._trim import Part, structure


def rank_shares(rows: Sequence[Row], row: int, columns: int) -> Float64[np.ndarray, " elements"]:
    """Of each magnitude of a row's differences, its rank among its ``columns`` neighbours, from 0 (least) to 1.

    Equal magnitudes rank by their place; a single element has 1/2. Cost: a sort of each ``columns`` elements.
    """
    if columns <= 1:
        return np.full(len(rows[0]), 0.5)
    keys = np.abs(_plain_trim.differences(rows, row)).reshape(-1, columns)
    order = np.argsort(keys, axis=1, kind="stable")
    shares = np.empty(keys.shape)
    np.put_along_axis(shares, order, np.arange(columns) / (columns - 1), axis=1)
    return shares.reshape(-1)


def magnitudes(rows: Sequence[Row], row: int, place: int, part: Part) -> tuple[float, float]:
    """(sum of magnitudes of a row's differences, of those that the part keeps), in float64, pairwise."""
    whole, kept = _plain_trim.kept_of(rows, row, place, structure(part))
    return float(whole.sum()), float(kept.sum())
