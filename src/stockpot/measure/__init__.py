"""Numbers about weights, from Gram matrices; opens no file."""

from stockpot.measure._gram import (
    Array,
    cosines,
    deltas,
    is_frozen,
    mean_cosine,
    norms,
    pack,
    unpack,
)
from stockpot.measure._groups import BLOCK_REGEX, GRANULARITIES, Granularity, block_of, group_of

__all__ = [
    "BLOCK_REGEX",
    "GRANULARITIES",
    "Array",
    "Granularity",
    "block_of",
    "cosines",
    "deltas",
    "group_of",
    "is_frozen",
    "mean_cosine",
    "norms",
    "pack",
    "unpack",
]
