"""What happened, in sentences."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from stockpot.methods import Method

if TYPE_CHECKING:
    from stockpot.engine import MergeResult

NEAR_BASE = 0.1
"""A median ratio under this means that the fine-tunes hardly agree."""


def human_bytes(size: float) -> str:
    """Decimal units, three digits.

    >>> human_bytes(2_200_000_000), human_bytes(999), human_bytes(51_200)
    ('2.20 GB', '999 B', '51.2 kB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}" if size >= 100 else f"{size:#.3g} {unit}"
        size /= 1000
    raise AssertionError


def counted(number: int, noun: str) -> str:
    """How many of what.

    >>> counted(1, "tensor"), counted(2000, "file")
    ('1 tensor', '2000 files')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def merge_summary(result: MergeResult) -> str:
    """The one line that ends a merge."""
    moved = result.bytes_read + result.bytes_written
    rate = moved / max(result.seconds, 1e-9)
    parts = [
        f"{result.method}: {counted(result.tensors, 'tensor')}, {human_bytes(result.bytes_read)} read, "
        f"{human_bytes(result.bytes_written)} written in {result.seconds:.1f} s ({human_bytes(rate)}/s), "
        f"peak memory {human_bytes(result.peak_memory_bytes)}"
    ]
    if result.resumed:
        parts.append(f"{counted(result.resumed, 'tensor')} finished before")
    ratio = result.ratio
    if ratio is not None:
        parts.append(f"t {ratio.min:.3f} to {ratio.max:.3f}, median {ratio.median:.3f}")
        parts.append(f"{ratio.clamped} of {ratio.count} ratios clamped to the base")
        if ratio.median < NEAR_BASE:
            parts.append("these fine-tunes hardly agree: the result stays near the base")
    if (lost := result.lost) is not None:
        parts.append(
            f"rank {lost.rank}: relative error {lost.relative_error:.3g}, most at {lost.module} ({lost.largest:.3g})"
        )
    return "; ".join(parts)


def method_page(method: Method) -> str:
    """A method's documentation: its docstring, roles of the inputs, parameters."""
    least, most = method.models
    models = f"{least} or more" if most is None else str(least) if least == most else f"{least} to {most}"
    roles = {
        "required": "required, the anchor",
        "optional": "the anchor, if one is given",
        "member": "one of the two inputs",
        "unused": "template only",
    }
    lines = [
        f"{method.name}: {inspect.getdoc(method.function) or ''}".rstrip(),
        "",
        f"models: {models}",
        f"base: {roles[method.base]}",
        f"reference: {method.reference}",
        "",
        "parameters (--set NAME=VALUE):" if method.parameters else "no parameters",
    ]
    lines += [f"  {parameter.name}: {parameter.describe()}" for parameter in method.parameters.values()]
    return "\n".join(lines)
