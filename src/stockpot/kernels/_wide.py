"""Rows on the CPU as numpy's float64, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stockpot.kernels import _native
from stockpot.kernels._shapes import Float64

if TYPE_CHECKING:
    from stockpot.kernels._rows import Row


def widened(row: Row) -> Float64[np.ndarray, " elements"]:
    """A row on the CPU as float64, exactly."""
    assert isinstance(row.data, np.ndarray)
    if row.dtype == "bfloat16":
        return (row.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return row.data.view(row.dtype).astype(np.float64)


def read_wide(row: Row) -> Float64[np.ndarray, " elements"]:
    """A row on the CPU as float64, exactly; where its file was cut off since, LostPagesError instead of a signal."""
    return widened(row if _native.library() is None else type(row)(row.dtype, _native.copied(row)))


def write_wide(values: NDArray[np.float64], out: Row) -> None:
    """Doubles into a row on the CPU, rounded once, to nearest, ties to even."""
    assert isinstance(out.data, np.ndarray)
    with np.errstate(all="ignore"):
        if out.dtype != "bfloat16":
            out.data.view(out.dtype)[:] = values.astype(out.dtype)
            return
        # Rounded to odd, a float has enough bits to be rounded again.
        near = values.astype(np.float32)
        inexact = np.isfinite(near) & (near.astype(np.float64) != values)
        back = np.abs(near.astype(np.float64)) > np.abs(values)
        bits = near.view(np.uint32) - (inexact & back).astype(np.uint32)
        bits |= inexact.astype(np.uint32)
        half = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        half = np.where(np.isnan(values), 0x7FC0, half)
        out.data.view(np.uint16)[:] = half.astype(np.uint16)
