"""Arithmetic on blocks of rows; opens no file. Its constants are known without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stockpot.kernels._constants import BLOCK, CHUNK, rows_per_step

if TYPE_CHECKING:
    from stockpot.kernels._blocks import (
        NonFiniteInputError,
        OverflowedError,
        Scratch,
        Views,
        cut,
        gram_blocks,
        gram_rows,
        mix,
        mix_steps,
        wide_dtype,
    )

__all__ = [
    "BLOCK",
    "CHUNK",
    "NonFiniteInputError",
    "OverflowedError",
    "Scratch",
    "Views",
    "cut",
    "gram_blocks",
    "gram_rows",
    "mix",
    "mix_steps",
    "rows_per_step",
    "wide_dtype",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    from stockpot.kernels import _blocks

    return getattr(_blocks, name)
