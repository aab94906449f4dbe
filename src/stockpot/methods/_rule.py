"""How an element-wise method makes a tensor: what it is told, and what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stockpot.kernels import Elements, Row

Unit = Literal["block", "row", "tensor"]
"""What pieces of a tensor are multiples of: 2^16 elements; what one index of its first axis holds (all of a vector); or
all of it."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """What data say of one model's tensor: the shape of the values, of how many ``rows`` they are the sum (None: it is
    not said), and whether the tensor lies with its inputs first."""

    shape: tuple[int, ...]
    rows: int | None = None
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """A tensor to be made: its name and shape, how many models, whether the base comes before them, and the seed.

    ``statistics``: one for each model where there are values of the tensor, else none.
    """

    name: str
    shape: tuple[int, ...]
    models: int
    anchored: bool
    seed: int
    statistics: tuple[Statistic, ...] = ()


class Tensor(Elements, Protocol):
    """The tensor of all inputs, and what data say of it."""

    @property
    def survey(self) -> NDArray[np.float64] | None:
        """What the method's look at all tensors came to, if it took one."""

    def statistic(self, model: int) -> NDArray[np.float64]:
        """All values of a model's statistic, models counted from 0; NonFiniteError where it is not finite."""


class Rule(Protocol):
    """Makes one tensor from pieces of its inputs, the base first. Data: asked twice, it does the same."""

    @property
    def unit(self) -> Unit:
        """What it must see together."""

    def measure(self, tensor: Tensor, *, pass_nonfinite: bool) -> Any:
        """What must be known of the whole tensor before any element can be made; goes through it as often as needed.

        What is not finite is refused here, or makes nonsense of it and is refused by ``make``.
        """

    def make(self, measured: Any, place: int, rows: Sequence[Row], out: Row, *, pass_nonfinite: bool) -> None:
        """Make the elements from ``place`` on, rounded once.

        Raises NonFiniteInputError and OverflowedError, with the place in the piece.
        """

    def facts(self) -> Mapping[str, object]:
        """What the tensor's form alone tells and is worth recording, as plain values."""


Put = Callable[[int, NDArray[np.uint8]], None]
"""Takes bytes of what a tensor has in the file beside the output, from an offset on."""


@runtime_checkable
class SurveyRule(Rule, Protocol):
    """A rule of a method that looks at all tensors before it makes any."""

    @property
    def awaits_survey(self) -> bool:
        """Whether no tensor can be made before; else the look is for the file alone."""

    @property
    def beside(self) -> tuple[int, ...]:
        """Shape of the bytes that the tensor has in the file beside the output; () for none."""

    def survey(self, tensor: Tensor, put: Put, *, pass_nonfinite: bool) -> NDArray[np.float64]:
        """Numbers that are summed over all tensors; raises as ``measure``."""

    def concluded(self, total: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
        """What the file says of all tensors together, from the sums."""
