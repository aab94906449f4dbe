"""Inner products and linear combinations of tensors, block by block; the same code on CPU and CUDA.

The law of numbers, as kept here:

- 8- and 16-bit inputs are computed in float32, wider ones in float64; inner products end in float64;
- work is on differences from the reference, ``w_0 - w_i``, so that errors are those of the small part, and the sign is
  such that an element on which all inputs agree keeps its bits (``x - 0 = x`` even for ``-0.0``);
- blocks are constants of this file, counted from the tensor's start, and partial sums are added in their order, so
  that neither threads nor memory budget nor pieces change a bit;
- one rounding, at the copy into the output's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stockpot.kernels._constants import BLOCK, CHUNK, rows_per_step
from stockpot.kernels._shapes import Float, Float64

_SAFE = {torch.float32: (1e-25, 1e33), torch.float64: (1e-280, 1e290)}
"""Squared norms of a block outside this range may have lost digits to underflow, or overflowed."""


@dataclass(frozen=True)
class Scratch:
    """Reused memory of one worker: ``wide`` holds a block of every input, ``mixed`` one block of output."""

    wide: Tensor
    mixed: Tensor

    @staticmethod
    def nbytes(inputs: int, wide_bytes: int, longest_row: int = 0) -> int:
        """Bytes that ``create`` takes."""
        return (inputs + 1) * max(BLOCK, longest_row) * wide_bytes

    @classmethod
    def create(cls, inputs: int, dtype: torch.dtype, device: torch.device, longest_row: int = 0) -> Scratch:
        """Memory for that many inputs; ``longest_row`` only where rows are reduced one by one."""
        size = max(BLOCK, longest_row)
        return cls(
            torch.empty(inputs, size, dtype=dtype, device=device), torch.empty(size, dtype=dtype, device=device)
        )


class NonFiniteInputError(Exception):
    """A block holds NaN or Inf; ``source`` is the input's position, ``index`` the element's in the given views."""

    def __init__(self, source: int, index: int) -> None:
        super().__init__(source, index)
        self.source = source
        self.index = index


class OverflowedError(Exception):
    """A finite result does not fit the output's dtype; ``index`` counts in the given views."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


def widen(views: Sequence[Tensor], start: int, stop: int, wide: Tensor) -> Tensor:
    """Row 0: the reference; rows i: reference minus input i; elements ``start`` to ``stop`` of 1-D views."""
    block = wide[: len(views), : stop - start]
    for row, view in zip(block, views, strict=True):
        row.copy_(view[start:stop])
    if len(views) > 1:
        torch.sub(block[0], block[1:], out=block[1:])
    return block


def gram_blocks(
    views: Sequence[Float[Tensor, " elements"]], scratch: Scratch, allow_nonfinite: bool = False
) -> Float64[np.ndarray, "blocks inputs inputs"]:
    """Inner products of (w_0, w_1 - w_0, ...) for each block of 1-D views of equal length, float64.

    Raises NonFiniteInputError unless ``allow_nonfinite``, under which such elements count as zero.
    Cost: one read of the views; n^2 products an element.
    """
    length = views[0].numel()
    grams = [
        _gram_block(views, start, min(start + BLOCK, length), scratch, allow_nonfinite)
        for start in range(0, length, BLOCK)
    ]
    return np.stack(grams) if grams else np.zeros((0, len(views), len(views)))


def _gram_block(
    views: Sequence[Tensor], start: int, stop: int, scratch: Scratch, allow_nonfinite: bool
) -> NDArray[np.float64]:
    length = stop - start
    padded = -(-length // CHUNK) * CHUNK if length > CHUNK else length
    block = widen(views, start, stop, scratch.wide)
    if padded > length:
        scratch.wide[: len(views), length:padded].zero_()
    block = scratch.wide[: len(views), :padded]
    gram = _products(block)
    if not _is_safe(gram, block):
        if not np.isfinite(gram).all():
            if allow_nonfinite:
                block.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            else:
                _raise_nonfinite(views, start, stop)
        gram = _products_rescaled(block)
    gram[0, 1:] *= -1.0
    gram[1:, 0] *= -1.0
    return gram


def _products(block: Tensor) -> NDArray[np.float64]:
    """Inner products of the rows: wide sums over chunks, float64 sums of those."""
    inputs, length = block.shape
    chunks = block.reshape(inputs, -1, min(CHUNK, length)).transpose(0, 1)
    partial: NDArray[np.float64] = torch.bmm(chunks, chunks.transpose(1, 2)).double().cpu().numpy()
    total = partial[0].copy()
    for gram in partial[1:]:
        total += gram
    return total


def _is_safe(gram: NDArray[np.float64], block: Tensor) -> bool:
    """Whether every squared norm is either inside the dtype's comfortable range or truly zero."""
    low, high = _SAFE[block.dtype]
    squares = np.diagonal(gram)
    fine = (squares >= low) & (squares <= high)
    if fine.all():
        return True
    return all(fine[i] or (squares[i] == 0.0 and not block[i].any()) for i in range(len(squares)))


def _products_rescaled(block: Tensor) -> NDArray[np.float64]:
    """The same in float64, each row first divided by its largest magnitude, so that no square under- or overflows."""
    rows = block.double()
    scale = rows.abs().amax(dim=1, keepdim=True)
    rows = rows / torch.where(scale > 0, scale, 1.0)
    factor = scale.flatten().cpu().numpy()
    return np.asarray(_products(rows) * factor[:, None] * factor[None, :])


def _raise_nonfinite(views: Sequence[Tensor], start: int, stop: int) -> None:
    for source, view in enumerate(views):
        bad = ~torch.isfinite(view[start:stop])
        if bad.any():
            raise NonFiniteInputError(source, start + int(bad.to(torch.uint8).argmax()))


def gram_rows(
    views: Sequence[Float[Tensor, " elements"]], columns: int, scratch: Scratch, allow_nonfinite: bool = False
) -> Float64[np.ndarray, "rows inputs inputs"]:
    """Inner products for each row (of ``columns`` elements) of 1-D views, float64.

    Rows longer than a block are reduced block by block, like whole tensors.
    """
    rows = views[0].numel() // columns
    if columns > BLOCK:
        parts = [
            gram_blocks([view[r * columns : (r + 1) * columns] for view in views], scratch, allow_nonfinite).sum(axis=0)
            for r in range(rows)
        ]
        return np.stack(parts)
    step = rows_per_step(columns)
    found = []
    for first in range(0, rows, step):
        last = min(first + step, rows)
        found.append(_gram_step(views, first * columns, last * columns, columns, scratch, allow_nonfinite))
    return np.concatenate(found) if found else np.zeros((0, len(views), len(views)))


def _gram_step(
    views: Sequence[Tensor], start: int, stop: int, columns: int, scratch: Scratch, allow_nonfinite: bool
) -> NDArray[np.float64]:
    block = widen(views, start, stop, scratch.wide)
    rows = block.reshape(len(views), -1, columns).transpose(0, 1)
    gram = np.zeros((rows.shape[0], len(views), len(views)))
    for first in range(0, columns, CHUNK):
        part = rows[:, :, first : first + CHUNK]
        gram += torch.bmm(part, part.transpose(1, 2)).double().cpu().numpy()
    low, high = _SAFE[block.dtype]
    squares = np.diagonal(gram, axis1=1, axis2=2)
    fine = (squares >= low) & (squares <= high)
    if not fine.all():
        fine |= (rows.abs().amax(dim=2) == 0).cpu().numpy()
    gram[:, 0, 1:] *= -1.0
    gram[:, 1:, 0] *= -1.0
    for row in np.flatnonzero(~fine.all(axis=1)):
        begin = start + int(row) * columns
        gram[row] = _gram_block(views, begin, begin + columns, scratch, allow_nonfinite)
    return gram


def mix(
    views: Sequence[Float[Tensor, " elements"]],
    weights: Float64[np.ndarray, "*rows inputs"],
    out: Float[Tensor, " elements"],
    scratch: Scratch,
    *,
    columns: int = 0,
    check_inputs: bool = True,
) -> None:
    """out = sum_i weights_i w_i over 1-D views of equal length, rounded once into ``out``'s dtype.

    ``weights``: shape ``(inputs,)``, or ``(rows, inputs)`` with rows of ``columns`` elements. Where exactly one input
    has a part with weight 1, or all that have a part are bitwise equal in a block, the bytes are copied.
    ``check_inputs``: raise NonFiniteInputError and OverflowedError (else NaN and Inf pass through).
    """
    step = BLOCK if weights.ndim == 1 or columns > BLOCK else rows_per_step(columns) * columns
    length = out.numel()
    for start in range(0, length, step):
        stop = min(start + step, length)
        if weights.ndim == 1 or columns > BLOCK:
            # A block of a long row may straddle rows; then it is mixed row by row.
            for begin, end, row in _row_spans(start, stop, columns if weights.ndim == 2 else 0):
                _mix_block(views, begin, end, weights if row is None else weights[row], out, scratch, check_inputs)
        else:
            part = weights[start // columns : -(-stop // columns)]
            _mix_rows(views, start, stop, part, columns, out, scratch, check_inputs)


def _row_spans(start: int, stop: int, columns: int) -> list[tuple[int, int, int | None]]:
    if not columns:
        return [(start, stop, None)]
    spans: list[tuple[int, int, int | None]] = []
    while start < stop:
        row = start // columns
        end = min(stop, (row + 1) * columns)
        spans.append((start, end, row))
        start = end
    return spans


def _mix_block(
    views: Sequence[Tensor],
    start: int,
    stop: int,
    weights: NDArray[np.float64],
    out: Tensor,
    scratch: Scratch,
    check: bool,
) -> None:
    used = [view for view, weight in zip(views, weights, strict=True) if weight != 0.0]
    same_kind = used and used[0].dtype == out.dtype and abs(float(weights.sum()) - 1.0) < 1e-12
    if same_kind and all(view.dtype == used[0].dtype and _same_bits(used[0], view, start, stop) for view in used[1:]):
        out[start:stop].copy_(used[0][start:stop])
        if check and not all(_is_finite(view[start:stop]) for view in views):
            _raise_nonfinite(views, start, stop)
        return
    block = widen(views, start, stop, scratch.wide)
    mixed = scratch.mixed[: stop - start]
    mixed.zero_()
    for row, weight in zip(block[1:], weights[1:], strict=True):
        if check or weight != 0.0:  # 0 * NaN is NaN: what has no part is still looked at
            mixed.add_(row, alpha=float(weight))
    _finish(views, start, stop, block[0], mixed, _total(weights), out, check)


def _mix_rows(
    views: Sequence[Tensor],
    start: int,
    stop: int,
    weights: NDArray[np.float64],
    columns: int,
    out: Tensor,
    scratch: Scratch,
    check: bool,
) -> None:
    block = widen(views, start, stop, scratch.wide)
    mixed = scratch.mixed[: stop - start]
    mixed.zero_()
    factors = torch.from_numpy(weights).to(block.dtype).to(block.device)
    for i in range(1, len(views)):
        mixed.view(-1, columns).addcmul_(block[i].view(-1, columns), factors[:, i : i + 1])
    _finish(views, start, stop, block[0], mixed, 1.0, out, check)
    _copy_exact_rows(views, start, stop, weights, columns, out)


def _copy_exact_rows(
    views: Sequence[Tensor], start: int, stop: int, weights: NDArray[np.float64], columns: int, out: Tensor
) -> None:
    """Rows that are one input's: its bytes. So too rows without the base where all fine-tunes are equal."""
    sole = (weights != 0.0).sum(axis=1) == 1
    chosen = np.where(sole & (weights.max(axis=1) == 1.0), weights.argmax(axis=1), -1)
    if len(views) > 2 and all(
        view.dtype == views[1].dtype and _same_bits(views[1], view, start, stop) for view in views[2:]
    ):
        chosen = np.where(weights[:, 0] == 0.0, 1, chosen)
    for row in np.flatnonzero(chosen >= 0):
        source = views[chosen[row]]
        if source.dtype == out.dtype:
            begin = start + int(row) * columns
            out[begin : begin + columns].copy_(source[begin : begin + columns])


def _total(weights: NDArray[np.float64]) -> float:
    """The sum of the weights, exactly 1 where it is 1 up to its own rounding."""
    total = float(weights.sum())
    return 1.0 if abs(total - 1.0) <= 4e-16 * len(weights) * max(1.0, float(np.abs(weights).sum())) else total


def _finish(
    views: Sequence[Tensor],
    start: int,
    stop: int,
    reference: Tensor,
    mixed: Tensor,
    scale: float,
    out: Tensor,
    check: bool,
) -> None:
    """out = scale * reference - mixed, rounded once."""
    if scale != 1.0:
        reference.mul_(scale)
    torch.sub(reference, mixed, out=mixed)
    out[start:stop].copy_(mixed)
    _check(views, start, stop, out, check)


def _check(views: Sequence[Tensor], start: int, stop: int, out: Tensor, check: bool) -> None:
    """Look closer where the output's sum is not finite: an input, an overflow, or only the sum itself."""
    if not check:
        return
    written = out[start:stop]
    if _is_finite(written):
        return
    _raise_nonfinite(views, start, stop)
    bad = ~torch.isfinite(written)
    if bad.any():
        raise OverflowedError(start + int(bad.to(torch.uint8).argmax()))


def _is_finite(values: Tensor) -> bool:
    """True only if all are finite; may be False where the sum overflows."""
    return bool(torch.isfinite(values.sum(dtype=None if values.dtype == torch.float64 else torch.float32)))


def _same_bits(first: Tensor, second: Tensor, start: int, stop: int) -> bool:
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[first.element_size()]
    left, right = first[start:stop].view(bits), second[start:stop].view(bits)
    # Most blocks differ at once; the whole is compared only where the beginning is equal.
    return bool(torch.equal(left[:64], right[:64])) and bool(torch.equal(left, right))


def wide_dtype(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """float32 for inputs of at most 16 bits, else float64."""
    return torch.float64 if any(dtype in (torch.float32, torch.float64) for dtype in dtypes) else torch.float32
