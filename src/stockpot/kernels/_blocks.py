"""Inner products and linear combinations of tensors, block by block; the same code on CPU and CUDA.

The law of numbers, as kept here:

- 8- and 16-bit inputs are computed in float32, wider ones in float64; inner products end in float64;
- work is on differences from the reference, ``w_0 - w_i``, so that errors are those of the small part, and the sign is
  such that an element on which all inputs agree keeps its bits (``x - 0 = x`` even for ``-0.0``);
- blocks are constants, counted from the tensor's start, and partial sums are added in their order, so that neither
  threads nor memory budget nor pieces change a bit;
- one rounding, at the copy into the output's dtype.

A call of torch costs microseconds whatever its size, so that a block takes as few calls as can be.
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

Views = Tensor | Sequence[Tensor]
"""Elements of every input, reference first: a 2-D tensor where all have one dtype, else 1-D tensors of equal length."""

_SAFE = {torch.float32: (1e-25, 1e33), torch.float64: (1e-280, 1e290)}
"""Squared norms of a block outside this range may have lost digits to underflow, or overflowed."""
_BITS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
_EXPONENT = {
    torch.bfloat16: (0x7FFF, 0x7F80),
    torch.float16: (0x7FFF, 0x7C00),
    torch.float32: (0x7FFFFFFF, 0x7F800000),
    torch.float64: (0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}
"""(mask of all bits but the sign, least pattern that is Inf or NaN)."""
_PROBE = 64


@dataclass(frozen=True)
class Scratch:
    """Reused memory of one worker: ``wide`` holds a block of every input, ``mixed`` one block of output."""

    wide: Tensor
    mixed: Tensor

    @classmethod
    def create(cls, inputs: int, dtype: torch.dtype, device: torch.device) -> Scratch:
        """Memory for that many inputs: (inputs + 1) * BLOCK elements."""
        return cls(
            torch.empty(inputs, BLOCK, dtype=dtype, device=device), torch.empty(BLOCK, dtype=dtype, device=device)
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


def wide_dtype(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """float32 for inputs of at most 16 bits, else float64."""
    return torch.float64 if any(dtype in (torch.float32, torch.float64) for dtype in dtypes) else torch.float32


def widen(views: Views, start: int, stop: int, wide: Tensor, raw: bool = False) -> Tensor:
    """Row 0: the reference; rows i: reference minus input i (``raw``: input i); elements ``start`` to ``stop``."""
    inputs = views.shape[0] if isinstance(views, Tensor) else len(views)
    block = wide[:inputs, : stop - start]
    if isinstance(views, Tensor):
        block.copy_(views[:, start:stop])
    else:
        for row, view in zip(block, views, strict=True):
            row.copy_(view[start:stop])
    if inputs > 1 and not raw:
        rest = block[1:]
        torch.sub(block[0], rest, out=rest)
    return block


def gram_blocks(
    views: Float[Tensor, "inputs elements"] | Sequence[Float[Tensor, " elements"]],
    scratch: Scratch,
    allow_nonfinite: bool = False,
    raw: bool = False,
    steps: Tensor | None = None,
) -> Float64[np.ndarray, "blocks inputs inputs"]:
    """Inner products of (w_0, w_1 - w_0, ...), or ``raw`` of (w_0, w_1, ...), for each block, float64.

    ``steps``: receives sum_i (w_0 - w_i), in the wide dtype, for ``mix_steps``.
    Raises NonFiniteInputError unless ``allow_nonfinite``, under which such elements count as zero.
    Cost: one read of the views; inputs^2 products an element.
    """
    length, inputs = views[0].numel(), len(views)
    if not length:
        return np.zeros((1, inputs, inputs))
    full = length // BLOCK
    wide = scratch.wide[:inputs]
    chunks = wide.view(inputs, -1, CHUNK).transpose(0, 1)
    partial = torch.empty(full, BLOCK // CHUNK, inputs, inputs, dtype=wide.dtype, device=wide.device)
    for number in range(full):
        widen(views, number * BLOCK, (number + 1) * BLOCK, wide, raw)
        torch.bmm(chunks, chunks.transpose(1, 2), out=partial[number])
        if steps is not None:
            _sum_rows(wide, steps[number * BLOCK : (number + 1) * BLOCK])
    # The sum over chunks runs along an outer axis, so that numpy adds in order.
    grams: NDArray[np.float64] = partial.double().cpu().numpy().sum(axis=1)
    if length > full * BLOCK:
        block = _padded(views, full * BLOCK, length, wide, raw)
        tail = _products(block)
        if steps is not None:
            _sum_rows(block[:, : length - full * BLOCK], steps[full * BLOCK :])
        grams = np.concatenate([grams, tail[None]])
    for number in _unsafe(grams, wide.dtype):
        grams[number] = _careful(
            views, number * BLOCK, min((number + 1) * BLOCK, length), scratch, allow_nonfinite, raw
        )
    return grams if raw else _with_signs(grams)


def _padded(views: Views, start: int, stop: int, wide: Tensor, raw: bool) -> Tensor:
    """A part of a block, filled up with zeros to whole chunks."""
    length = stop - start
    padded = -(-length // CHUNK) * CHUNK if length > CHUNK else length
    block = widen(views, start, stop, wide, raw)
    if padded > length:
        wide[: len(views), length:padded].zero_()
        block = wide[: len(views), :padded]
    return block


def _products(block: Tensor) -> NDArray[np.float64]:
    """Inner products of the rows: wide sums over chunks, float64 sums of those."""
    inputs, length = block.shape
    chunks = block.reshape(inputs, -1, max(1, min(CHUNK, length))).transpose(0, 1)
    found: NDArray[np.float64] = torch.bmm(chunks, chunks.transpose(1, 2)).double().cpu().numpy().sum(axis=0)
    return found


def _with_signs(grams: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows hold w_0 - w_i; inner products with w_0 change sign for w_i - w_0."""
    grams[..., 0, 1:] *= -1.0
    grams[..., 1:, 0] *= -1.0
    return grams


def _unsafe(grams: NDArray[np.float64], dtype: torch.dtype) -> list[int]:
    """Groups with a squared norm outside the comfortable range; zero is one, since tiny values underflow to it."""
    low, high = _SAFE[dtype]
    squares = np.diagonal(grams, axis1=-2, axis2=-1)
    return [int(number) for number in np.flatnonzero(~((squares >= low) & (squares <= high)).all(axis=-1))]


def _careful(
    views: Views, start: int, stop: int, scratch: Scratch, allow_nonfinite: bool, raw: bool = False
) -> NDArray[np.float64]:
    """Inner products (rows w_0 - w_i) in float64, each row in units of its largest magnitude."""
    if not allow_nonfinite:
        _raise_nonfinite(views, start, stop)
    block = _padded(views, start, stop, scratch.wide, raw)
    if allow_nonfinite:
        block = block.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    scale = block.abs().amax(dim=1, keepdim=True).double()
    moved = (scale > 0).flatten()
    if not bool(moved.any()):
        return np.zeros((len(views), len(views)))
    low, high = _SAFE[block.dtype]
    gram = _products(block)
    squares = np.diagonal(gram)
    if bool((((squares >= low) & (squares <= high)) | ~moved.cpu().numpy()).all()):
        return gram
    rows = block.double() / torch.where(scale > 0, scale, 1.0)
    factor = scale.flatten().cpu().numpy()
    return np.asarray(_products(rows) * factor[:, None] * factor[None, :])


def _raise_nonfinite(views: Views, start: int, stop: int) -> None:
    for source in range(len(views)):
        bad = ~torch.isfinite(views[source][start:stop])
        if bad.any():
            raise NonFiniteInputError(source, start + int(bad.to(torch.uint8).argmax()))


def gram_rows(
    views: Float[Tensor, "inputs elements"] | Sequence[Float[Tensor, " elements"]],
    columns: int,
    scratch: Scratch,
    allow_nonfinite: bool = False,
) -> Float64[np.ndarray, "rows inputs inputs"]:
    """Inner products for each row (of ``columns`` elements), float64.

    Rows longer than a block are reduced block by block, like whole tensors.
    """
    rows = views[0].numel() // columns
    if columns > BLOCK:
        parts = [
            gram_blocks(cut(views, r * columns, (r + 1) * columns), scratch, allow_nonfinite).sum(axis=0)
            for r in range(rows)
        ]
        return np.stack(parts)
    step = rows_per_step(columns)
    found = [
        _gram_step(views, first * columns, min(first + step, rows) * columns, columns, scratch, allow_nonfinite)
        for first in range(0, rows, step)
    ]
    return np.concatenate(found) if found else np.zeros((0, len(views), len(views)))


def _gram_step(
    views: Views, start: int, stop: int, columns: int, scratch: Scratch, allow_nonfinite: bool
) -> NDArray[np.float64]:
    rows = widen(views, start, stop, scratch.wide).reshape(len(views), -1, columns).transpose(0, 1)
    grams = np.zeros((rows.shape[0], len(views), len(views)))
    for first in range(0, columns, CHUNK):
        part = rows[:, :, first : first + CHUNK]
        grams += torch.bmm(part, part.transpose(1, 2)).double().cpu().numpy()
    low, high = _SAFE[rows.dtype]
    squares = np.diagonal(grams, axis1=1, axis2=2)
    fine = (squares >= low) & (squares <= high)
    if not fine.all():
        # Rows that were never trained have truly zero differences; only what moved is looked at again.
        fine |= (rows.abs().amax(dim=2) == 0).cpu().numpy()
    for row in np.flatnonzero(~fine.all(axis=1)):
        begin = start + int(row) * columns
        grams[row] = _careful(views, begin, begin + columns, scratch, allow_nonfinite)
    return _with_signs(grams)


def cut(views: Views, start: int, stop: int) -> Views:
    """The same elements of every input."""
    return views[:, start:stop] if isinstance(views, Tensor) else [view[start:stop] for view in views]


def mix(
    views: Float[Tensor, "inputs elements"] | Sequence[Float[Tensor, " elements"]],
    weights: Float64[np.ndarray, "*rows inputs"],
    out: Float[Tensor, " elements"],
    scratch: Scratch,
    *,
    columns: int = 0,
    check: bool = True,
    pass_nonfinite: bool = False,
) -> None:
    """out = sum_i weights_i w_i, rounded once into ``out``'s dtype.

    ``weights``: shape ``(inputs,)``, or ``(rows, inputs)`` with rows of ``columns`` elements. Where exactly one input
    has a part, with weight 1, or all that have a part are bitwise equal in a block, the bytes are copied.
    ``check``: look at inputs and output, and raise NonFiniteInputError or OverflowedError. ``pass_nonfinite``: NaN and
    Inf of an input without a part do not spread.
    Cost: one read of the views, one write.
    """
    length = out.numel()
    if weights.ndim == 1:
        _mix_span(views, 0, length, weights, out, scratch, check, pass_nonfinite)
    elif columns > BLOCK:
        for row, own in enumerate(weights):
            _mix_span(views, row * columns, (row + 1) * columns, own, out, scratch, check, pass_nonfinite)
    else:
        step = rows_per_step(columns) * columns
        for start in range(0, length, step):
            stop = min(start + step, length)
            part = weights[start // columns : stop // columns]
            _mix_rows(views, start, stop, part, columns, out, scratch, check)


def _mix_span(
    views: Views,
    first: int,
    last: int,
    weights: NDArray[np.float64],
    out: Tensor,
    scratch: Scratch,
    check: bool,
    pass_nonfinite: bool,
) -> None:
    """Elements ``first`` to ``last`` with one set of weights, in blocks counted from ``first``."""
    total = _total(weights)
    used = [number for number, weight in enumerate(weights) if weight != 0.0]
    copies = total == 1.0 and bool(used) and len({views[number].dtype for number in used}) == 1
    maybe_same = _begin_alike(views, used, first, last) if copies else ()
    wide = scratch.wide[: len(views)]
    rest = wide[1:]
    uniform = _uniform(weights)
    # What has no part is still looked at (0 * NaN is NaN), unless NaN is to pass through.
    steps = torch.from_numpy(weights[None, 1:]).to(wide.dtype).to(wide.device)
    skip = pass_nonfinite and len(used) < len(weights)
    for number, start in enumerate(range(first, last, BLOCK)):
        stop = min(start + BLOCK, last)
        if copies and maybe_same[number] and _all_same(views, used, start, stop):
            out[start:stop].copy_(views[used[0]][start:stop])
            if check:
                _raise_if_any(views, start, stop, scratch)
                _check(views, start, stop, out, scratch)
            continue
        block = widen(views, start, stop, wide)
        if skip:
            block[[n for n in range(1, len(weights)) if n not in used]] = 0.0
        mixed = scratch.mixed[: stop - start]
        if uniform:
            _sum_rows(block, mixed)
            _scale(mixed, float(weights[1]), mixed)
        elif len(weights) > 1:
            torch.mm(steps, rest[:, : stop - start], out=mixed[None])
        else:
            mixed.zero_()
        _finish(views, start, stop, block[0], mixed, total, out, scratch, False)
        if (check or pass_nonfinite) and _has_nonfinite(out[start:stop], scratch):
            if check:
                _raise_nonfinite(views, start, stop)
            _combine_directly(views, start, stop, weights, out)
            if check:
                _check(views, start, stop, out, scratch)


def _combine_directly(views: Views, start: int, stop: int, weights: NDArray[np.float64], out: Tensor) -> None:
    """Elements whose differences overflow, or that are Inf in an input, as a plain weighted sum in float64."""
    places = start + torch.nonzero(~torch.isfinite(out[start:stop])).flatten()
    used = [number for number, weight in enumerate(weights) if weight != 0.0]
    total = sum(float(weights[number]) * views[number][places].double() for number in used)
    out[places] = torch.as_tensor(total, dtype=torch.float64).to(out.dtype)


def _uniform(weights: NDArray[np.float64]) -> bool:
    """Whether all inputs but the reference have one weight: their differences are then summed before it is applied."""
    return len(weights) > 1 and bool((weights[1:] == weights[1]).all()) and weights[1] != 0.0


def _sum_rows(block: Tensor, out: Tensor) -> None:
    """The sum of all rows but the first, added in order."""
    if block.shape[0] == 2:
        out.copy_(block[1])
        return
    torch.add(block[1], block[2], out=out)
    for row in range(3, block.shape[0]):
        out.add_(block[row])


def _scale(values: Tensor, weight: float, out: Tensor) -> None:
    """out = weight * values, with zeros positive, so that taking them away changes no sign."""
    torch.mul(values, weight, out=out)
    if weight < 0:
        out.add_(0.0)


def mix_steps(
    reference: Float[Tensor, " elements"],
    steps: Float[Tensor, " elements"],
    weight: float,
    out: Float[Tensor, " elements"],
    scratch: Scratch,
    *,
    check: bool = True,
) -> None:
    """``mix`` with one weight for all inputs but the reference, from the sums that ``gram_blocks`` kept: the same bits.

    Not for weights under which the reference has no part (``mix`` may then copy bytes that are not here).
    """
    for start in range(0, out.numel(), BLOCK):
        stop = min(start + BLOCK, out.numel())
        block = scratch.wide[0, : stop - start]
        block.copy_(reference[start:stop])
        mixed = scratch.mixed[: stop - start]
        _scale(steps[start:stop], weight, mixed)
        _finish([reference], start, stop, block, mixed, 1.0, out, scratch, check)


def _mix_rows(
    views: Views,
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
    _finish(views, start, stop, block[0], mixed, 1.0, out, scratch, check)
    _copy_exact_rows(views, start, stop, weights, columns, out)


def _copy_exact_rows(
    views: Views, start: int, stop: int, weights: NDArray[np.float64], columns: int, out: Tensor
) -> None:
    """Rows that are one input's: its bytes. So too rows without the base where all fine-tunes are equal."""
    sole = (weights != 0.0).sum(axis=1) == 1
    chosen = np.where(sole & (weights.max(axis=1) == 1.0), weights.argmax(axis=1), -1)
    if (weights[:, 0] == 0.0).any():
        alike = _rows_alike(views, start, stop, columns)
        chosen = np.where((weights[:, 0] == 0.0) & alike, 1, chosen)
    for row in np.flatnonzero(chosen >= 0):
        begin = start + int(row) * columns
        out[begin : begin + columns].copy_(views[int(chosen[row])][begin : begin + columns])


def _rows_alike(views: Views, start: int, stop: int, columns: int) -> NDArray[np.bool_]:
    """Rows on which all inputs but the reference are bitwise equal."""
    alike = np.ones((stop - start) // columns, dtype=bool)
    first = views[1]
    for i in range(2, len(views)):
        if views[i].dtype != first.dtype:
            return np.zeros_like(alike)
        bits = [view[start:stop].view(_BITS[first.dtype]).view(-1, columns) for view in (first, views[i])]
        alike &= (bits[0] == bits[1]).all(dim=1).cpu().numpy()
    return alike


def _total(weights: NDArray[np.float64]) -> float:
    """The sum of the weights, exactly 1 where it is 1 up to its own rounding."""
    total = float(weights.sum())
    return 1.0 if abs(total - 1.0) <= 4e-16 * len(weights) * max(1.0, float(np.abs(weights).sum())) else total


def _finish(
    views: Views,
    start: int,
    stop: int,
    reference: Tensor,
    mixed: Tensor,
    scale: float,
    out: Tensor,
    scratch: Scratch,
    check: bool,
) -> None:
    """out = scale * reference - mixed, rounded once."""
    if scale != 1.0:
        reference.mul_(scale)
    torch.sub(reference, mixed, out=mixed)
    written = out[start:stop]
    written.copy_(mixed)
    if check:
        _check(views, start, stop, out, scratch)


def _check(views: Views, start: int, stop: int, out: Tensor, scratch: Scratch) -> None:
    """Raise where the output is not finite: an input is not, or the output's dtype is too narrow."""
    written = out[start:stop]
    if _has_nonfinite(written, scratch):
        _raise_nonfinite(views, start, stop)
        raise OverflowedError(start + int((~torch.isfinite(written)).to(torch.uint8).argmax()))


def _has_nonfinite(values: Tensor, scratch: Scratch) -> bool:
    """Whether any is Inf or NaN, by its bits: exact, and cheaper than asking each. Uses ``scratch.mixed``."""
    mask, least = _EXPONENT[values.dtype]
    bits = values.view(_BITS[values.dtype])
    room = scratch.mixed.view(_BITS[values.dtype])
    if values.numel() > room.numel():
        return not bool(torch.isfinite(values).all())
    magnitude = torch.bitwise_and(bits, mask, out=room[: values.numel()])
    return bool(magnitude.amax() >= least)


def _raise_if_any(views: Views, start: int, stop: int, scratch: Scratch) -> None:
    for source in range(len(views)):
        if _has_nonfinite(views[source][start:stop], scratch):
            _raise_nonfinite(views, start, stop)


def _begin_alike(views: Views, used: Sequence[int], first: int, last: int) -> Sequence[bool]:
    """For each block, whether its first elements are equal: most blocks that differ do so at once."""
    heads = [views[number][first:last:BLOCK].view(_BITS[views[number].dtype]) for number in used]
    alike = torch.ones(heads[0].numel(), dtype=torch.bool, device=heads[0].device)
    for head in heads[1:]:
        alike &= head == heads[0]
    return [bool(one) for one in alike.tolist()]


def _all_same(views: Views, used: Sequence[int], start: int, stop: int) -> bool:
    """Whether these inputs (of one dtype) are bitwise equal from ``start`` to ``stop``."""
    bits = [views[number][start:stop].view(_BITS[views[number].dtype]) for number in used]
    return all(torch.equal(bits[0][:_PROBE], other[:_PROBE]) and torch.equal(bits[0], other) for other in bits[1:])
