"""What can be fuzzed, as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import ModuleType

Run = Callable[[bytes], object]
"""Reads one input as stockpot would; may raise StockpotError."""
Mutate = Callable[[bytes, int, Random], bytes]
"""(input, most bytes, random numbers) -> another input."""


@dataclass(frozen=True)
class Target:
    """One reader.

    ``prepare`` is given an empty folder in memory and returns what is run on each input; nothing outside that folder
    may be opened then, and nothing in it for writing unless ``writes``. ``seeds`` are inputs to begin with, ``mutate``
    makes others that are still of the form, ``words`` are pieces of text that the form knows. ``modules`` are those
    whose branches are watched.
    """

    name: str
    prepare: Callable[[Path], Run]
    seeds: Callable[[], Sequence[bytes]]
    modules: Sequence[ModuleType]
    mutate: Mutate | None = None
    words: Sequence[bytes] = ()
    max_bytes: int = 4096
    writes: bool = False
