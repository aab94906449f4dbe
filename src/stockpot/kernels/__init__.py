"""Arithmetic on blocks of rows; opens no file, and needs torch for GPUs only (or where C was not built)."""

from __future__ import annotations

from stockpot.kernels._constants import BLOCK, CHUNK, DTYPES, ITEMSIZE, LARGEST
from stockpot.kernels._doubles import Doubles, Keyed, blocks, make_by_blocks
from stockpot.kernels._low_rank import Factors, add_low_rank, factors
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
from stockpot.kernels._selection import BYTES_OF_KEY, Cut, Elements, Wanted, kept_count, largest, middle
from stockpot.kernels._trim import Part, Sum, random_key, trim
from stockpot.kernels._weighted import first_negative, weighted
from stockpot.kernels._wide import read_wide, widened, write_wide

__all__ = [
    "BLOCK",
    "BYTES_OF_KEY",
    "CHUNK",
    "DTYPES",
    "DTYPES_OF_MANY",
    "ITEMSIZE",
    "LARGEST",
    "Cut",
    "Doubles",
    "Elements",
    "Factors",
    "Keyed",
    "LostPagesError",
    "Many",
    "NonFiniteInputError",
    "OverflowedError",
    "Part",
    "Row",
    "Sum",
    "Wanted",
    "add_low_rank",
    "blocks",
    "catching_lost_pages",
    "cut",
    "factors",
    "first_negative",
    "first_nonfinite",
    "gram_blocks",
    "gram_many",
    "gram_rows",
    "is_compiled",
    "kept_count",
    "largest",
    "magnitudes",
    "make_by_blocks",
    "middle",
    "mix",
    "mix_many",
    "random_key",
    "rank_shares",
    "read_wide",
    "regressed",
    "trim",
    "weighted",
    "widened",
    "write_wide",
]
