"""Which tensors share one ratio: tensor, row, block, model."""

from __future__ import annotations

import re
from typing import Literal, get_args

Granularity = Literal["tensor", "row", "block", "model"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)

BLOCK_REGEX = r"^.*?[A-Za-z_][^.]*\.\d+(?=\.|$)"
"""A block is the name up to the first integer component that follows a word: ``encoder.layer.3``."""


def block_of(name: str, regex: str | None = None) -> str:
    """The block of a tensor; a tensor without one is its own.

    >>> block_of("encoder.layer.3.attention.weight"), block_of("head.weight")
    ('encoder.layer.3', 'head.weight')
    """
    match = re.search(regex or BLOCK_REGEX, name)
    return match.group(0) if match and match.group(0) else name


def group_of(name: str, granularity: str, block_regex: str | None = None) -> str:
    """The group whose inner products a tensor's are summed into."""
    if granularity == "model":
        return "model"
    if granularity == "block":
        return block_of(name, block_regex)
    return name


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A key for sorting by name in which numbers count as numbers: layer 2 comes before layer 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]
