"""Tensors of an adapter as float64 arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stockpot.checkpoint import Source, TensorInfo, read_dense
from stockpot.measure import Array


def values_of(source: Source, info: TensorInfo) -> Array:
    """A whole tensor, exactly, in its own shape."""
    return widened(read_dense(source, info), info.dtype).reshape(info.shape)


def widened(data: NDArray[np.uint8], dtype: str) -> Array:
    """Bytes of a mergeable dtype as float64, exactly."""
    if dtype == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return data.view({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]).astype(np.float64)
