"""The C program's searches and trimmed sums: its structures, and the calls."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stockpot.kernels import _native
from stockpot.kernels._constants import BATCH

if TYPE_CHECKING:
    from stockpot.kernels._rows import Row

_LONG, _DOUBLE, _POINTER = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class Search(ctypes.Structure):
    """``struct search`` of native.c."""

    _fields_ = (
        *((name, _LONG) for name in ("row", "narrow")),
        *((name, _DOUBLE) for name in ("low", "high", "least", "most")),
        *((name, _LONG) for name in ("above", "inside", "room", "stored", "first", "shift")),
        *((name, _POINTER) for name in ("found", "places", "blocks", "bins")),
    )


class Part(ctypes.Structure):
    """``struct part`` of native.c."""

    _fields_ = (
        *((name, _DOUBLE) for name in ("weight", "scale", "low", "above_low", "high", "above_high", "chance")),
        *((name, _LONG) for name in ("low_until", "high_until", "inverse")),
        ("chances", _POINTER),
        ("key", ctypes.c_uint32 * 2),
    )


class Sum(ctypes.Structure):
    """``struct sum`` of native.c."""

    _fields_ = (
        *((name, _DOUBLE) for name in ("lambda_", "divisor", "tiny", "most")),
        *((name, _LONG) for name in ("consensus", "normalize", "pass_nonfinite")),
    )


@functools.cache
def _program() -> ctypes.CDLL:
    found = _native.loaded()
    number, address = ctypes.c_int32, _POINTER
    found.stockpot_look.argtypes = (number, address, address, *(_LONG,) * 4, address, _LONG)
    found.stockpot_look.restype = number
    found.stockpot_trim.argtypes = (
        number, address, address, _LONG, _LONG, _LONG, address, address, address, address, number
    )  # fmt: skip
    found.stockpot_trim.restype = _LONG
    return found


def look(rows: Sequence[Row], place: int, run: int, step: int, searches: ctypes.Array[Search]) -> None:
    """Go on with searches in ``run`` elements of every ``step``."""
    _native.require(
        _program().stockpot_look(
            _native.instruction_set(), *_native.inputs(rows), len(rows[0]), place, run, step,
            ctypes.addressof(searches), len(searches),
        )
    )  # fmt: skip


def trim(rows: Sequence[Row], place: int, parts: ctypes.Array[Part], total: Sum, out: Row) -> int:
    """A piece of the sum; -1, or the first index at which something is not finite."""
    held = (ctypes.c_char * (64 + len(rows) * (8 * (3 * BATCH + 1) + ctypes.sizeof(Part))))()
    return int(
        _native.require(
            _program().stockpot_trim(
                _native.instruction_set(), *_native.inputs(rows), len(rows), len(out), place,
                ctypes.addressof(parts), ctypes.addressof(total), ctypes.addressof(held),
                _native.address(out), _native.NUMBERS[out.dtype],
            )
        )
    )  # fmt: skip
