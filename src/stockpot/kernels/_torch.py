"""The same bits as ``native/``, with torch's elementwise operations in float64: for GPUs, and where C was not built.

Sums are added element by element in their defined order, never by a reduction of torch's own; products and sums are
separate operations, so that no device fuses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stockpot.kernels._constants import CHUNK, LARGEST, SUMS

if TYPE_CHECKING:
    from stockpot.kernels._rows import Row

_BATCH = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Doubles of one input that are worked on at once."""
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_SPLITTER = float((1 << 27) + 1)


def _batch(device: torch.device, inputs: int) -> int:
    return max(1 << 16, _BATCH.get(device.type, 1 << 24) // inputs)


def gram(rows: Sequence[Row], span: int, raw: bool, zero_nonfinite: bool) -> NDArray[np.float64]:
    """Inner products of w_0 and w_0 - w_i (``raw``: of all w_i) for every ``span`` elements."""
    tensors = [row.tensor() for row in rows]
    count = tensors[0].numel()
    spans = max(1, _batch(tensors[0].device, len(rows)) // span)
    parts = [
        _gram([t[start : start + spans * span] for t in tensors], span, raw, zero_nonfinite)
        for start in range(0, count, spans * span)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, len(rows), len(rows)))


def _gram(tensors: Sequence[Tensor], span: int, raw: bool, zero_nonfinite: bool) -> NDArray[np.float64]:
    n, count = len(tensors), tensors[0].numel()
    spans = -(-count // span)
    # A span is filled up with zeros to 2^k chunks, or a single one to whole rounds of the running sums.
    chunk = CHUNK if span > CHUNK else -(-span // SUMS) * SUMS
    chunks = 1 << (-(-span // chunk) - 1).bit_length()
    wide = torch.zeros(n, spans, chunks * chunk, dtype=torch.float64, device=tensors[0].device)
    whole = count // span
    for own, tensor in zip(wide, tensors, strict=True):
        own[:whole, :span].copy_(tensor[: whole * span].view(whole, span))
        if count > whole * span:
            own[whole, : count - whole * span].copy_(tensor[whole * span :])
    if not raw:
        wide[1:] = wide[:1] - wide[1:]
        if all(tensor.element_size() == 2 for tensor in tensors):
            wide[1:] = wide[1:].float()  # so that products are exact
    if zero_nonfinite:
        wide = torch.where(torch.isfinite(wide), wide, 0.0)
    wide = wide.view(n, spans, chunks, chunk // SUMS, SUMS)
    out = torch.empty(spans, n, n, dtype=torch.float64, device=wide.device)
    for i in range(n):
        products = wide[i] * wide[i:]
        sums = torch.zeros(n - i, spans, chunks, SUMS, dtype=torch.float64, device=wide.device)
        for step in range(chunk // SUMS):
            sums += products[:, :, :, step]
        while sums.shape[-1] > 1:
            half = sums.shape[-1] // 2
            sums = sums[..., :half] + sums[..., half:]
        while sums.shape[2] > 1:
            sums = sums[:, :, 0::2] + sums[:, :, 1::2]
        out[:, i, i:] = out[:, i:, i] = sums[:, :, 0, 0].T
    return np.asarray(out.cpu().numpy())


def mix(
    rows: Sequence[Row],
    weights: NDArray[np.float64],
    totals: NDArray[np.float64],
    span: int,
    out: Row,
    pass_nonfinite: bool,
) -> int:
    """Linear combinations into ``out``; -1, or the first index at which something is not finite."""
    tensors, target = [row.tensor() for row in rows], out.tensor()
    step = max(1, _batch(target.device, 1) // span) * span if len(weights) > 1 else _batch(target.device, 1)
    table = torch.from_numpy(np.concatenate([weights, totals], axis=1)).to(target.device)
    for start in range(0, target.numel(), step):
        stop = min(start + step, target.numel())
        if len(weights) > 1:
            of_each = table[start // span : -(-stop // span)].repeat_interleave(span, dim=0)[: stop - start]
        else:
            of_each = table.expand(stop - start, -1)
        found = _mix([t[start:stop] for t in tensors], of_each.unbind(1), target[start:stop], pass_nonfinite)
        if found >= 0:
            return start + found
    return -1


def _mix(tensors: Sequence[Tensor], table: Sequence[Tensor], out: Tensor, pass_nonfinite: bool) -> int:
    """``table``: for each element its weights, and the high and low part of their sum."""
    *weights, total, _ = table
    x0 = tensors[0].double()
    whole = total * x0
    sums, size = torch.zeros_like(x0), whole.abs()
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        product = weight * (x0 - tensor.double())
        if pass_nonfinite:
            product = torch.where(weight == 0.0, 0.0, product)
        sums += product
        size += product.abs()
    value = whole - sums
    if out.dtype == torch.float64:
        unsure = torch.ones_like(value, dtype=torch.bool)
    else:
        error = size * ((len(tensors) + 4) * 2.0**-52)
        if out.dtype != torch.float32:
            error = torch.where(size > 0.0, error + (value.abs() * 2.0**-22 + 2.0**-148), 0.0)
        # The second is value + error, which would make +0 of -0.
        low, high = (value - error).to(out.dtype), (-(-value - error)).to(out.dtype)
        bits = _INTEGERS[out.element_size()]
        unsure = low.view(bits) != high.view(bits)
        out.copy_(low)
    places = unsure.nonzero().flatten()
    if places.numel():
        out[places] = _exactly([t[places] for t in tensors], [one[places] for one in table], out.dtype, pass_nonfinite)
    _keep_bits(tensors, weights, total, out)
    suspects = (~(size <= 0.9 * LARGEST[str(out.dtype).removeprefix("torch.")])).nonzero().flatten()
    return _settle(tensors, weights, out, suspects, pass_nonfinite) if suspects.numel() else -1


def _settle(
    tensors: Sequence[Tensor], weights: Sequence[Tensor], out: Tensor, places: Tensor, pass_nonfinite: bool
) -> int:
    """Elements where differences may overflow, or an input is Inf or NaN: the plain sum over what has a part."""
    values = torch.stack([t[places].double() for t in tensors])
    table = torch.stack([w[places] for w in weights])
    finite = torch.isfinite(values)
    if pass_nonfinite:
        finite |= table == 0.0
    inputs = finite.all(0)
    same_dtype = torch.tensor([t.dtype == out.dtype for t in tensors], device=out.device)[:, None]
    copied = ((table != 0.0).sum(0) == 1) & ((table == 1.0) & same_dtype).any(0)
    direct = ~copied & ~(inputs & torch.isfinite(out[places]))
    total = torch.zeros_like(values[0])
    for weight, value in zip(table, values, strict=True):
        total = total + torch.where(weight == 0.0, 0.0, weight * value)
    total = torch.where(total.isnan(), torch.nan, total)
    out[places] = torch.where(direct, _rounded(total, out.dtype), out[places])
    bad = (~(inputs & torch.isfinite(out[places]))).nonzero().flatten()
    return -1 if pass_nonfinite or not bad.numel() else int(places[bad[0]])


def _exactly(tensors: Sequence[Tensor], table: Sequence[Tensor], dtype: torch.dtype, pass_nonfinite: bool) -> Tensor:
    """Twice the digits of a double: S x_0 - sum_i a_i (x_0 - x_i), the rounding error of every step kept."""
    *weights, total, rest = table
    x0 = tensors[0].double()
    high = total * x0
    whole, plain, size = high, torch.zeros_like(high), high.abs()
    low = rest * x0 + _error_of_product(total, x0, high)
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        a, x = -weight, tensor.double()
        d = x0 - x
        back = x0 - d
        d_error = (x0 - (d + back)) + (back - x)
        p = a * d
        p_error = _error_of_product(a, d, p) + a * d_error
        if pass_nonfinite:
            p, p_error = (torch.where(weight == 0.0, 0.0, one) for one in (p, p_error))
        plain, size = plain - p, size + p.abs()
        high, error = _sum(high, p)
        low = low + (error + p_error)
    value, error = _sum(high, low)
    # Where every term is zero the sign is that of the plain sum; where terms cancel it is +.
    value = torch.where(size == 0.0, whole - plain, value)
    if dtype == torch.float64:
        return value
    bits = value.view(torch.int64)
    # To odd: what is rounded again to fewer bits is then rounded as the exact value would be.
    moved = (error != 0.0) & (bits & 1 == 0)
    step = torch.where(torch.signbit(value) == torch.signbit(error), 1, -1)
    return _rounded((bits + torch.where(moved, step, 0)).view(torch.float64), dtype)


def _sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a + b and its rounding error."""
    total = a + b
    kept = total - a
    return total, (a - (total - kept)) + (b - kept)


def _error_of_product(a: Tensor, b: Tensor, product: Tensor) -> Tensor:
    """a * b - product, exactly (Veltkamp and Dekker), without a fused operation."""
    a_high = _SPLITTER * a - (_SPLITTER * a - a)
    b_high = _SPLITTER * b - (_SPLITTER * b - b)
    a_low, b_low = a - a_high, b - b_high
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _rounded(odd: Tensor, dtype: torch.dtype) -> Tensor:
    """Doubles that hold exact values rounded to odd, rounded once."""
    if dtype in (torch.float64, torch.float32):
        return odd.to(dtype)
    low = (1 << 29) - 1
    bits = odd.view(torch.int64)
    cut = (bits & ~low) | torch.where(bits & low != 0, low + 1, 0)
    found = cut.view(torch.float64).float().to(dtype)
    if dtype == torch.bfloat16:
        # A subnormal float has fewer bits than that: round to whole steps of the least bfloat16.
        small = (odd.abs() * 2.0**133).round() * 2.0**-133
        found = torch.where(odd.abs() < 2.0**-126, torch.copysign(small, odd).to(dtype), found)
        found = torch.where(odd.isnan(), torch.nan, found)
    return found


def _keep_bits(tensors: Sequence[Tensor], weights: Sequence[Tensor], total: Tensor, out: Tensor) -> None:
    """The bytes of the one input with a part, if its weight is 1; and of all that have one, where they agree."""
    if not out.numel():
        return
    table = torch.stack(list(weights))
    used = table != 0.0
    sole = (used.sum(0) == 1) & (table.sum(0) == 1.0)
    agreed = (used.sum(0) > 1) & ((total - 1.0).abs() < 1e-14)
    if out.dtype != torch.float64:
        agreed &= ~used[0]
    if not bool((sole | agreed).any()):
        return
    for own, tensor in zip(used, tensors, strict=True):
        if tensor.dtype != out.dtype and bool((sole & own).any()):
            out.copy_(torch.where(sole & own, _rounded(tensor.double(), out.dtype), out))
    bits = _INTEGERS[out.element_size()]
    same = torch.ones_like(agreed)
    alike = torch.ones_like(agreed)
    first = torch.zeros(out.numel(), dtype=bits, device=out.device)
    begun = torch.zeros_like(agreed)
    for own, tensor in zip(used, tensors, strict=True):
        if tensor.dtype != out.dtype:
            alike &= ~own
            continue
        pattern = tensor.view(bits)
        same &= ~own | ~begun | (pattern == first)
        first = torch.where(own & ~begun, pattern, first)
        begun |= own
    keep = alike & (sole | (agreed & same))
    target = out.view(bits)
    target.copy_(torch.where(keep, first, target))


def first_nonfinite(row: Row) -> int:
    """Index of the first NaN or Inf, or -1."""
    bad = (~torch.isfinite(row.tensor())).nonzero()
    return int(bad[0]) if bad.numel() else -1
