"""Tensors of an adapter as float64 arrays."""

from __future__ import annotations

import numpy as np

from stockpot import errors
from stockpot.checkpoint import TORCH_NAMES, Source, TensorInfo, itemsize, read_dense
from stockpot.kernels import Row, widened
from stockpot.measure import Array

WIDE = "F64"
"""The dtype in which computed tensors are given."""


def values_of(source: Source, info: TensorInfo, first: int = 0, last: int | None = None) -> Array:
    """Elements of a tensor (all by default), exactly, flat; raises NonFiniteError for NaN and Inf."""
    item = itemsize(info.dtype)
    if info.strides is not None:
        data = read_dense(source, info)[first * item : None if last is None else last * item]
    else:
        data = np.empty((info.nbytes if last is None else last * item) - first * item, np.uint8)
        source.read_into(info, first * item, data.data)
    found = widened(Row(TORCH_NAMES[info.dtype], data))
    if not np.isfinite(found).all():
        at = first + int(np.argmin(np.isfinite(found)))
        place = [int(i) for i in np.unravel_index(at, info.shape)] if info.shape else []
        raise errors.NonFiniteError(
            f"an adapter is not finite at index {place}", tensor=info.name, file=source.files[info.file].path,
            remedy="leave this adapter out",
        )  # fmt: skip
    return found


def matrix_of(source: Source, info: TensorInfo) -> Array:
    """A factor as a matrix: all axes but the first are one."""
    return values_of(source, info).reshape(info.shape[0], -1)
