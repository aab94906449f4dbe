"""How an element-wise method makes a tensor: what it is told, and what it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from stockpot.kernels import Elements, Row

Unit = Literal["block", "row", "tensor"]
"""What pieces of a tensor are multiples of: 2^16 elements; what one index of its first axis holds (all of a vector); or
all of it."""


@dataclass(frozen=True, slots=True)
class Form:
    """A tensor to be made: its name and shape, how many models, whether the base comes before them, and the seed."""

    name: str
    shape: tuple[int, ...]
    models: int
    anchored: bool
    seed: int


class Rule(Protocol):
    """Makes one tensor from pieces of its inputs, the base first. Data: asked twice, it does the same."""

    @property
    def unit(self) -> Unit:
        """What it must see together."""

    def measure(self, tensor: Elements, *, pass_nonfinite: bool) -> Any:
        """What must be known of the whole tensor before any element can be made; goes through it as often as needed.

        Raises NonFiniteInputError, with the place in the tensor.
        """

    def make(self, measured: Any, place: int, rows: Sequence[Row], out: Row, *, pass_nonfinite: bool) -> None:
        """Make the elements from ``place`` on, rounded once.

        Raises NonFiniteInputError and OverflowedError, with the place in the piece.
        """

    def facts(self) -> Mapping[str, object]:
        """What the tensor's form alone tells and is worth recording, as plain values."""
