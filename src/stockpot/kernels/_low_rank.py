"""Products of two thin matrices, added to a range of a tensor: what a LoRA adapter does to a weight."""

from __future__ import annotations

import numpy as np

from stockpot.kernels import _native
from stockpot.kernels._shapes import Float64


def add_low_rank(
    out: Float64[np.ndarray, " elements"],
    start: int,
    left: Float64[np.ndarray, "rows rank"],
    right: Float64[np.ndarray, "rank columns"],
    scale: float,
) -> None:
    """out[i] += scale * (left right)[start + i], the product taken row-major.

    All arrays dense. Each element is a float64 sum over the rank, from the first to the last, times the scale, plus
    what was there, each step rounded: the same bits whatever the range. Cost: 2 x rank operations an element.
    """
    rows, rank = left.shape
    columns = right.shape[1]
    assert 0 <= start <= start + out.size <= rows * columns
    assert all(array.flags.c_contiguous for array in (out, left, right))
    if not out.size:
        return
    if _native.library() is not None:
        _native.add_low_rank(out, start, left, right, scale)
        return
    first, last = start // columns, -(-(start + out.size) // columns)
    for row in range(first, last):
        begin, end = max(start, row * columns), min(start + out.size, (row + 1) * columns)
        sums = np.zeros(end - begin)
        for k in range(rank):
            sums += left[row, k] * right[k, begin - row * columns : end - row * columns]
        out[begin - start : end - start] += scale * sums
