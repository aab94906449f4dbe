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
from stockpot.measure._groups import BLOCK_REGEX, GRANULARITIES, Granularity, block_of, group_of, natural_order
from stockpot.measure._kinds import KINDS, kind_of
from stockpot.measure._plane import Plane, plane_through
from stockpot.measure._shape import angles, coordinates, distance, pairs, pairwise

__all__ = [
    "BLOCK_REGEX",
    "GRANULARITIES",
    "KINDS",
    "Array",
    "Granularity",
    "Plane",
    "angles",
    "block_of",
    "coordinates",
    "cosines",
    "deltas",
    "distance",
    "group_of",
    "is_frozen",
    "kind_of",
    "mean_cosine",
    "natural_order",
    "norms",
    "pack",
    "pairs",
    "pairwise",
    "plane_through",
    "unpack",
]
