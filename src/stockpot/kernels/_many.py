"""Many small tensors of the same inputs in one call: a call costs as much as the arithmetic of thousands of elements.

The bits are those of ``gram_blocks`` and ``mix`` for each tensor alone. C only; what is not plain (NaN, Inf, float64's
extremes) is left to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stockpot.kernels import _native
from stockpot.kernels._rows import minus_differences, totals_of
from stockpot.kernels._shapes import Float64

DTYPES_OF_MANY = ("bfloat16", "float16", "float32")
"""Those whose squares neither vanish nor overflow in float64."""


@dataclass(frozen=True, slots=True)
class Many:
    """Where tensors lie: ``addresses`` of shape (tensors, inputs), ``counts`` of elements, 1 to BLOCK for each."""

    dtypes: tuple[str, ...]
    addresses: _native.Addresses
    counts: _native.Counts


def gram_many(many: Many, *, raw: bool = False) -> Float64[np.ndarray, "tensors inputs inputs"] | None:
    """Inner products of each tensor, as ``gram_blocks`` of it alone; None where anything is not finite."""
    grams = _native.gram_many(many.dtypes, many.addresses, many.counts, raw)
    if not np.isfinite(grams).all():
        return None
    return grams if raw else minus_differences(grams)


def mix_many(many: Many, weights: Float64[np.ndarray, "tensors inputs"], out_dtype: str, out_address: int) -> bool:
    """Each tensor's combination, as ``mix``, one after the other into memory; False where anything is not finite."""
    table = np.ascontiguousarray(weights, dtype=np.float64)
    totals = totals_of(table, out_dtype)
    found = _native.mix_many(many.dtypes, many.addresses, many.counts, table, totals, out_dtype, out_address)
    return found < 0
