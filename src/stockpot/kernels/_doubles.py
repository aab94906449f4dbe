"""Elements as numpy's float64, block by block, for arithmetic that has no program of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from stockpot.kernels._constants import BLOCK
from stockpot.kernels._rows import OverflowedError, Row, cut, first_nonfinite
from stockpot.kernels._selection import Elements
from stockpot.kernels._shapes import Float64
from stockpot.kernels._trim import refuse
from stockpot.kernels._wide import read_wide, write_wide

Doubles = Float64[np.ndarray, " elements"]


def blocks(rows: Sequence[Row], size: int = BLOCK) -> Iterator[tuple[int, list[Doubles]]]:
    """(place in the piece, the elements of each input) of ``size`` elements at a time."""
    for start in range(0, len(rows[0]), size):
        yield start, [read_wide(row) for row in cut(rows, start, min(start + size, len(rows[0])))]


def make_by_blocks(
    rows: Sequence[Row],
    out: Row,
    made: Callable[[int, list[Doubles]], Doubles],
    *,
    size: int = BLOCK,
    pass_nonfinite: bool = False,
) -> None:
    """Each block as ``made`` of its place in the piece and its elements, rounded once.

    Raises NonFiniteInputError and OverflowedError unless ``pass_nonfinite``. Cost: some ten nanoseconds an element and
    operation.
    """
    for start, values in blocks(rows, size):
        if not pass_nonfinite:
            odd = ~np.isfinite(values).all(axis=0)
            if odd.any():
                refuse(rows, start + int(np.argmax(odd)))
        with np.errstate(all="ignore"):
            found = made(start, values)
        part = out.cut(start, start + found.size)
        write_wide(found, part)
        if not pass_nonfinite and (at := first_nonfinite(part)) >= 0:
            raise OverflowedError(start + at)


class Keyed:
    """A tensor of which the magnitude of each element is made of all inputs: to select among these."""

    is_near = False
    dtypes = ("float64", "float64")

    def __init__(self, tensor: Elements, key: Callable[[list[Doubles]], Doubles], row: int = 1) -> None:
        self._tensor = tensor
        self._key = key
        self._row = row
        self.count = tensor.count
        self.room_bytes = tensor.room_bytes

    def pieces(self, *, is_glimpse: bool = False) -> Iterator[tuple[int, Sequence[Row]]]:
        """Pieces of a row of zeros and of the keys."""
        for place, rows in self._tensor.pieces(is_glimpse=is_glimpse):
            yield place, self._of(rows)

    def load(self, start: int, stop: int) -> Sequence[Row]:
        """Some of them; whole rows of ``row`` elements are made."""
        first = start // self._row * self._row
        rows = self._of(self._tensor.load(first, min(-(-stop // self._row) * self._row, self.count)))
        return cut(rows, start - first, stop - first)

    def _of(self, rows: Sequence[Row]) -> list[Row]:
        size = BLOCK if self._row == 1 else max(BLOCK // self._row, 1) * self._row
        with np.errstate(all="ignore"):
            keys = np.concatenate([self._key(values) for _, values in blocks(rows, size)])
        return [Row("float64", np.zeros(keys.size).view(np.uint8)), Row("float64", keys.view(np.uint8))]
