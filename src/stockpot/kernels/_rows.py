"""Inner products and linear combinations of rows: the elements of one tensor in every input, reference first.

The law of numbers, as kept here:

- everything is computed in float64, on differences from the reference ``w_0 - w_i`` (the sign is such that an element
  on which all inputs agree keeps its bits: ``x - 0 = x`` even for ``-0.0``);
- inner products are summed in an order that counts from the tensor's start, so that neither threads nor memory budget
  nor pieces change a bit; linear combinations are correctly rounded, so that their bits need no order at all;
- two programs compute the same bits: ``native/`` in C for the CPU, ``_torch.py`` for a GPU, and for a CPU on which
  there was no C compiler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stockpot.kernels import _native
from stockpot.kernels._constants import BLOCK, ITEMSIZE
from stockpot.kernels._shapes import Float64

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

_SAFE = (1e-280, 1e290)
"""Squared norms outside this range may have lost digits to underflow, or overflowed (float64 inputs only)."""
_AFFINE = 4e-16


@dataclass(slots=True)
class Row:
    """Elements of one input: their bytes in memory, or a 1-D tensor on a device.

    ``dtype``: bfloat16, float16, float32 or float64.
    """

    dtype: str
    data: NDArray[np.uint8] | Tensor
    address: int = 0
    """Of the bytes in memory; 0: not asked for yet (asking numpy costs more than a small tensor's arithmetic)."""
    far: bool = False
    """An output that is not read again soon: written past the caches, which saves reading its memory first."""

    @classmethod
    def of(cls, tensor: Tensor) -> Row:
        """A contiguous tensor's own memory, where it is."""
        import torch

        flat = tensor.detach().reshape(-1)
        name = str(flat.dtype).removeprefix("torch.")
        return cls(name, flat.view(torch.uint8).numpy() if flat.device.type == "cpu" else flat)

    def __len__(self) -> int:
        size = self.data.size if isinstance(self.data, np.ndarray) else self.data.numel() * self.data.element_size()
        return size // ITEMSIZE[self.dtype]

    def cut(self, start: int, stop: int) -> Row:
        """Elements ``start`` to ``stop``, without copying."""
        if isinstance(self.data, np.ndarray):
            item = ITEMSIZE[self.dtype]
            address = self.address + start * item if self.address else 0
            return Row(self.dtype, self.data[start * item : stop * item], address)
        return Row(self.dtype, self.data[start:stop])

    def tensor(self) -> Tensor:
        """As a tensor that shares the memory."""
        import torch

        if isinstance(self.data, np.ndarray):
            dtype = getattr(torch, self.dtype)
            return torch.from_numpy(self.data).view(dtype) if self.data.size else torch.empty(0, dtype=dtype)
        return self.data


class NonFiniteInputError(Exception):
    """There is a NaN or Inf; ``source`` is the input's position, ``index`` the element's in the given rows."""

    def __init__(self, source: int, index: int) -> None:
        super().__init__(source, index)
        self.source = source
        self.index = index


class OverflowedError(Exception):
    """A finite result does not fit the output's dtype; ``index`` counts in the given rows."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


def cut(rows: Sequence[Row], start: int, stop: int) -> list[Row]:
    """The same elements of every input."""
    return [row.cut(start, stop) for row in rows]


def is_compiled() -> bool:
    """Whether the C program is there; without it torch computes on the CPU too."""
    return _native.library() is not None


def _program(rows: Sequence[Row]) -> Any:
    """C for memory, where it was built; torch for a device."""
    if isinstance(rows[0].data, np.ndarray) and is_compiled():
        return _native
    from stockpot.kernels import _torch

    return _torch


def first_nonfinite(row: Row) -> int:
    """Index of the first NaN or Inf, -1 where there is none. Cost: one read."""
    return int(_program([row]).first_nonfinite(row))


def gram_blocks(
    rows: Sequence[Row], *, raw: bool = False, allow_nonfinite: bool = False
) -> Float64[np.ndarray, "blocks inputs inputs"]:
    """Inner products of (w_0, w_1 - w_0, ...), or ``raw`` of (w_0, w_1, ...), for each block of 2^16 elements.

    Raises NonFiniteInputError unless ``allow_nonfinite``, under which such elements count as zero.
    Cost: one read of the rows; inputs^2 / 2 products an element.
    """
    if not len(rows[0]):
        return np.zeros((1, len(rows), len(rows)))
    return _spans(rows, BLOCK, raw, allow_nonfinite)


def gram_rows(
    rows: Sequence[Row], columns: int, *, raw: bool = False, allow_nonfinite: bool = False
) -> Float64[np.ndarray, "rows inputs inputs"]:
    """Inner products for each row of a matrix (of ``columns`` elements); the bits of ``gram_blocks`` for that row."""
    if columns <= BLOCK:
        return _spans(rows, columns, raw, allow_nonfinite)
    found = [
        gram_blocks(cut(rows, start, start + columns), raw=raw, allow_nonfinite=allow_nonfinite).sum(axis=0)
        for start in range(0, len(rows[0]), columns)
    ]
    return np.stack(found) if found else np.zeros((0, len(rows), len(rows)))


def _spans(rows: Sequence[Row], span: int, raw: bool, allow_nonfinite: bool) -> NDArray[np.float64]:
    grams: NDArray[np.float64] = _program(rows).gram(rows, span, raw, allow_nonfinite)
    wide = any(row.dtype == "float64" for row in rows)
    # Below 64 bits squares neither underflow nor overflow, and one sum tells whether anything is not finite.
    with np.errstate(invalid="ignore"):
        total = grams.sum()
    if wide or not math.isfinite(total):
        _repair(grams, rows, span, raw, allow_nonfinite, wide)
    return grams if raw else minus_differences(grams)


def minus_differences(grams: NDArray[np.float64]) -> NDArray[np.float64]:
    """The programs work on w_0 - w_i; inner products with w_0 change sign for w_i - w_0, but zero has none."""
    np.subtract(0.0, grams[..., 0, 1:], out=grams[..., 0, 1:])
    np.subtract(0.0, grams[..., 1:, 0], out=grams[..., 1:, 0])
    return grams


def _repair(
    grams: NDArray[np.float64], rows: Sequence[Row], span: int, raw: bool, allow_nonfinite: bool, wide: bool
) -> None:
    """Spans whose squares are not finite, or too small or large for float64: refused, or summed again scaled."""
    squares = np.diagonal(grams, axis1=-2, axis2=-1)
    low, high = _SAFE
    # Zero is unsafe too: what is tiny underflows to it.
    unsafe = ~((squares >= low) & (squares <= high)) if wide else ~np.isfinite(squares)
    for number in np.flatnonzero(unsafe.any(axis=-1)):
        start, stop = int(number) * span, min((int(number) + 1) * span, len(rows[0]))
        part = cut(rows, start, stop)
        if not allow_nonfinite:
            for source, row in enumerate(part):
                if (at := first_nonfinite(row)) >= 0:
                    raise NonFiniteInputError(source, start + at)
        if wide:
            grams[number] = _scaled(part, raw)


def _scaled(rows: Sequence[Row], raw: bool) -> NDArray[np.float64]:
    """Inner products of few rows with each in units of its largest magnitude."""
    if _program(rows) is _native:  # torch does not survive a lost page
        rows = [Row(row.dtype, _native.copied(row)) for row in rows]
    wide = np.stack([row.tensor().double().cpu().numpy() for row in rows])
    with np.errstate(all="ignore"):
        if not raw:
            wide[1:] = wide[0] - wide[1:]
        wide = np.nan_to_num(wide, nan=0.0, posinf=0.0, neginf=0.0)
        scale = np.abs(wide).max(axis=1)
        wide /= np.where(scale > 0, scale, 1.0)[:, None]
        products = np.array([[(one * other).sum() for other in wide] for one in wide])
        return np.asarray(products * scale[:, None] * scale[None, :])


def mix(
    rows: Sequence[Row],
    weights: Float64[np.ndarray, "*matrix inputs"],
    out: Row,
    *,
    columns: int = 0,
    pass_nonfinite: bool = False,
) -> None:
    """out = sum_i weights_i w_i, correctly rounded to ``out``'s dtype (as far as twice float64's digits tell).

    ``weights``: shape ``(inputs,)``, or ``(rows, inputs)`` for a matrix with rows of ``columns`` elements. The sum is
    taken as ``S w_0 - sum_i weights_i (w_0 - w_i)`` with S the sum of the weights. Where one input alone has a part,
    with weight 1, or all that have a part hold the same bits, those bits are copied.
    Raises NonFiniteInputError and OverflowedError; not under ``pass_nonfinite``, where NaN and Inf of an input without
    a part do not spread either.
    Cost: one read of the rows, one write; where the result lies next to half-way between two values, two reads.
    """
    table = np.ascontiguousarray(weights, dtype=np.float64).reshape(-1, len(rows))
    totals = totals_of(table, out.dtype)
    span = columns or max(len(out), 1)
    at = int(_program(rows).mix(rows, table, totals, span, out, pass_nonfinite))
    if at < 0:
        return
    for source, row in enumerate(rows):
        if first_nonfinite(row.cut(at, at + 1)) >= 0:
            raise NonFiniteInputError(source, at)
    raise OverflowedError(at)


def totals_of(table: NDArray[np.float64], out_dtype: str) -> NDArray[np.float64]:
    """The sum of each row of weights, high and low part."""
    return np.array([_total(one, exact=out_dtype == "float64") for one in table.tolist()]).reshape(-1, 2)


def _total(weights: Sequence[float], exact: bool) -> tuple[float, float]:
    """The sum of the weights, high and low part. ``exact``: 1 where it is 1 but for the weights' own rounding.

    That snap is for float64 outputs, where a total of 1 - 2^-54 would show on elements on which all inputs agree.
    """
    high = math.fsum(weights)
    if exact and abs(high - 1.0) <= _AFFINE * len(weights) * max(1.0, sum(map(abs, weights))):
        return 1.0, 0.0
    return high, math.fsum([*weights, -high]) if math.isfinite(high) else 0.0
