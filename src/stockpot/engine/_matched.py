"""What data say of one model's tensor, matched with the tensor."""

from __future__ import annotations

from dataclasses import dataclass

from stockpot.checkpoint import TensorInfo
from stockpot.methods import Statistic


@dataclass(frozen=True, slots=True)
class Matched:
    """Where the values are, as a source of the slot is told; whether they are streamed; what is said of them."""

    source: tuple[int, TensorInfo]
    streamed: bool
    about: Statistic
