"""Products of two thin matrices, added to a range of a tensor: what a LoRA adapter does to a weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stockpot.kernels import _native
from stockpot.kernels._rows import Row
from stockpot.kernels._shapes import Float64
from stockpot.kernels._wide import widened

COLUMNS = 64
"""Columns of a tile, as native/native.c has it."""


@dataclass(frozen=True)
class Factors:
    """Two thin matrices whose product has ``rows`` x ``columns`` elements, laid out for reading.

    ``left``: (rows, rank); ``right``: (tiles, rank, COLUMNS), the columns in tiles, filled up with zeros, so that what
    is read together lies together; ``exact``: every product of two factors is exact in float64, as of numbers of at
    most 24 bits (float32 and narrower), so that a fused sum has the same bits.
    """

    left: Float64[np.ndarray, "rows rank"]
    right: Float64[np.ndarray, "tiles rank 64"]
    columns: int
    exact: bool


def factors(left: Float64[np.ndarray, "rows rank"], right: Float64[np.ndarray, "rank columns"], exact: bool) -> Factors:
    """Lay two matrices out."""
    rank, columns = right.shape
    tiles = -(-columns // COLUMNS)
    filled = np.zeros((rank, tiles * COLUMNS))
    filled[:, :columns] = right
    laid = np.ascontiguousarray(filled.reshape(rank, tiles, COLUMNS).swapaxes(0, 1))
    return Factors(np.ascontiguousarray(left), laid, columns, exact)


def add_low_rank(row: Row, out: Float64[np.ndarray, " elements"], start: int, product: Factors, scale: float) -> None:
    """out[i] = row[i] + scale * (left right)[start + i], the product taken row-major.

    ``row``: as many elements of any floating dtype on the CPU. Each element is a float64 sum over the rank, from the
    first to the last, times the scale, plus what is there, each step rounded: the same bits whatever the range and the
    machine. Cost: 2 x rank operations an element.
    """
    left, right, columns = product.left, product.right, product.columns
    assert left.shape[1] == right.shape[1]
    assert columns <= len(right) * COLUMNS
    assert 0 <= start <= start + out.size <= len(left) * columns
    assert len(row) == out.size
    assert out.flags.c_contiguous
    if not out.size:
        return
    if _native.library() is not None:
        _native.add_low_rank(row, out, start, columns, left, right, scale, product.exact)
        return
    out[:] = widened(row)
    plain = right.swapaxes(0, 1).reshape(right.shape[1], -1)
    first, last = start // columns, -(-(start + out.size) // columns)
    for line in range(first, last):
        begin, end = max(start, line * columns), min(start + out.size, (line + 1) * columns)
        sums = np.zeros(end - begin)
        for k in range(len(plain)):
            sums += left[line, k] * plain[k, begin - line * columns : end - line * columns]
        out[begin - start : end - start] += scale * sums
