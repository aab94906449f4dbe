"""Tensors of an adapter as float64 arrays."""

from __future__ import annotations

from stockpot.checkpoint import TORCH_NAMES, Source, TensorInfo, read_dense
from stockpot.kernels import Row, widened
from stockpot.measure import Array


def values_of(source: Source, info: TensorInfo) -> Array:
    """A whole tensor, exactly, in its own shape."""
    return widened(Row(TORCH_NAMES[info.dtype], read_dense(source, info))).reshape(info.shape)
