"""Arithmetic on blocks of rows; opens no file, and needs torch for GPUs only (or where C was not built)."""

from __future__ import annotations

from stockpot.kernels._constants import BLOCK, CHUNK, DTYPES, ITEMSIZE, LARGEST
from stockpot.kernels._doubles import Doubles, Keyed, blocks, make_by_blocks
from stockpot.kernels._low_rank import Factors, add_low_rank, factors, widened
from stockpot.kernels._many import DTYPES_OF_MANY, Many, gram_many, mix_many
from stockpot.kernels._native import LostPagesError, catching_lost_pages
from stockpot.kernels._ranks import magnitudes, rank_shares
from stockpot.kernels._regression import regressed
from stockpot.kernels._rows import (
    NonFiniteInputError,
    OverflowedError,
    Row,
    cut,
    first_nonfinite,
    gram_blocks,
    gram_rows,
    is_compiled,
    mix,
)
from stockpot.kernels._selection import Cut, Elements, Wanted, kept_count, largest, middle
from stockpot.kernels._trim import Part, Sum, random_key, trim
from stockpot.kernels._weighted import first_negative, read_wide, weighted, write_wide

__all__ = [
    "Cut",
    "make_by_blocks",
    "blocks",
    "Keyed",
    "Doubles",
    "rank_shares",
    "magnitudes",
    "trim",
    "random_key",
    "Sum",
    "Part",
    "middle",
    "largest",
    "kept_count",
    "Wanted",
    "Elements",
    "BLOCK",
    "CHUNK",
    "DTYPES",
    "DTYPES_OF_MANY",
    "ITEMSIZE",
    "LARGEST",
    "Factors",
    "LostPagesError",
    "Many",
    "NonFiniteInputError",
    "OverflowedError",
    "Row",
    "add_low_rank",
    "catching_lost_pages",
    "cut",
    "factors",
    "first_negative",
    "first_nonfinite",
    "gram_blocks",
    "gram_many",
    "gram_rows",
    "is_compiled",
    "mix",
    "mix_many",
    "read_wide",
    "regressed",
    "weighted",
    "widened",
    "write_wide",
]
