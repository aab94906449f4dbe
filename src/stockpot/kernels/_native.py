"""The C program in ``native/``, through ctypes: calls leave the interpreter to other threads."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.machinery
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stockpot.kernels._constants import DTYPES

if TYPE_CHECKING:
    from stockpot.kernels._rows import Row

Addresses = NDArray[np.uint64]
Counts = NDArray[np.int64]

SWITCH = "STOCKPOT_NATIVE"
"""Environment: ``0`` leaves the C program out; ``any``, ``avx2`` or ``avx512`` choose its instruction set."""
NUMBERS = {dtype: number for number, dtype in enumerate(DTYPES)}
_ISAS = ("any", "avx2", "avx512")
_LOST = -2
_LONG, _INT, _POINTER = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled program; None where it was not built or is switched off."""
    if os.environ.get(SWITCH) == "0":
        return None
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_compiled" + suffix)
        if path.exists():
            break
    else:
        return None
    found = ctypes.CDLL(str(path))
    found.stockpot_isa.restype = _INT
    found.stockpot_scratch.argtypes, found.stockpot_scratch.restype = (_LONG,), _LONG
    found.stockpot_gram.argtypes = (_INT, _POINTER, _POINTER, _LONG, _LONG, _LONG, _INT, _INT, _POINTER, _POINTER)
    found.stockpot_gram.restype = _INT
    found.stockpot_mix.argtypes = (
        _INT, _POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER, _POINTER, _INT, _POINTER, _POINTER, _INT, _INT
    )  # fmt: skip
    found.stockpot_mix.restype = _LONG
    found.stockpot_first_nonfinite.argtypes = (_INT, _POINTER, _INT, _LONG, _LONG)
    found.stockpot_first_nonfinite.restype = _LONG
    found.stockpot_gram_many.argtypes = (
        _INT, _POINTER, _POINTER, _LONG, _LONG, _POINTER, _INT, _POINTER, _POINTER
    )  # fmt: skip
    found.stockpot_gram_many.restype = _INT
    found.stockpot_mix_many.argtypes = (
        _INT, _POINTER, _POINTER, _LONG, _LONG, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _INT
    )  # fmt: skip
    found.stockpot_mix_many.restype = _LONG
    found.stockpot_add_low_rank.argtypes = (
        _INT, _POINTER, _INT, _POINTER, _LONG, _LONG, _LONG, _LONG, _POINTER, _POINTER, ctypes.c_double, _INT
    )  # fmt: skip
    found.stockpot_add_low_rank.restype = None
    found.stockpot_copy.argtypes, found.stockpot_copy.restype = (_POINTER, _POINTER, _LONG), _INT
    found.stockpot_catch_lost_pages.argtypes, found.stockpot_catch_lost_pages.restype = (_INT,), None
    return found


@functools.cache
def instruction_set() -> int:
    """The best that this machine has, or the one asked for."""
    best = int(loaded().stockpot_isa())
    asked = os.environ.get(SWITCH)
    return min(best, _ISAS.index(asked)) if asked in _ISAS else best


def loaded() -> ctypes.CDLL:
    found = library()
    assert found is not None
    return found


class LostPagesError(Exception):
    """A row lies in a file that has become shorter since, or cannot be read any more."""


def require(found: int) -> int:
    if found == _LOST:
        raise LostPagesError
    return found


_catching = 0
_catching_lock = threading.Lock()


@contextlib.contextmanager
def catching_lost_pages() -> Iterator[None]:
    """While it lasts, a page of a mapped file that is gone costs a LostPagesError of the call that touched it.

    Without it, the system ends the process (SIGBUS). The signal's handler is the process's: ours stands for as long as
    anybody is inside, hands on what did not happen in our own calls, and then gives the place back.
    """
    global _catching
    with _catching_lock:
        _catching += 1
        if _catching == 1 and (found := library()) is not None:
            found.stockpot_catch_lost_pages(1)
    try:
        yield
    finally:
        with _catching_lock:
            _catching -= 1
            if _catching == 0 and (found := library()) is not None:
                found.stockpot_catch_lost_pages(0)


@functools.cache
def _tables(count: int) -> tuple[type[ctypes.Array[ctypes.c_void_p]], type[ctypes.Array[ctypes.c_int32]]]:
    return _POINTER * count, _INT * count


class _Memory(threading.local):
    """Scratch of one thread, by the number of inputs it is for."""

    def __init__(self) -> None:
        self.kept: dict[int, ctypes.Array[ctypes.c_double]] = {}


_memory = _Memory()


def _scratch(inputs: int) -> ctypes.Array[ctypes.c_double]:
    """This thread's own, kept for the next call."""
    kept = _memory.kept
    if inputs not in kept:
        kept.clear()
        kept[inputs] = (ctypes.c_double * int(loaded().stockpot_scratch(inputs)))()
    return kept[inputs]


def _in_memory(row: Row) -> NDArray[np.uint8]:
    """The row's bytes; rows of a device never come to the C program."""
    assert isinstance(row.data, np.ndarray)
    return row.data


def address(row: Row) -> int:
    if not row.address:
        row.address = _in_memory(row).ctypes.data
    return row.address


def inputs(rows: Sequence[Row]) -> tuple[ctypes.Array[ctypes.c_void_p], ctypes.Array[ctypes.c_int32]]:
    pointers, numbers = _tables(len(rows))
    return pointers(*map(address, rows)), numbers(*[NUMBERS[row.dtype] for row in rows])


def gram(rows: Sequence[Row], span: int, raw: bool, zero_nonfinite: bool) -> NDArray[np.float64]:
    """Inner products of w_0 and w_0 - w_i (``raw``: of all w_i) for every ``span`` elements."""
    n, count = len(rows), len(rows[0])
    out = np.empty((-(-count // span), n, n))
    scratch = _scratch(n)
    lost = loaded().stockpot_gram(
        instruction_set(), *inputs(rows), n, count, span, raw, zero_nonfinite,
        ctypes.addressof(scratch), out.ctypes.data,
    )  # fmt: skip
    require(lost)
    return out


def mix(
    rows: Sequence[Row],
    weights: NDArray[np.float64],
    totals: NDArray[np.float64],
    span: int,
    out: Row,
    pass_nonfinite: bool,
) -> int:
    """Linear combinations into ``out``; -1, or the first index at which something is not finite."""
    n = len(rows)
    scratch = _scratch(n)
    found: int = loaded().stockpot_mix(
        instruction_set(), *inputs(rows), n, len(out), span, weights.ctypes.data, totals.ctypes.data,
        pass_nonfinite, ctypes.addressof(scratch), address(out), NUMBERS[out.dtype], out.far,
    )  # fmt: skip
    return require(found)


def gram_many(dtypes: Sequence[str], addresses: Addresses, counts: Counts, raw: bool) -> NDArray[np.float64]:
    """Inner products of each tensor (of at most BLOCK elements): addresses of shape (tensors, inputs)."""
    tensors, n = addresses.shape
    out = np.empty((tensors, n, n))
    types = np.array([NUMBERS[dtype] for dtype in dtypes], dtype=np.int32)
    lost = loaded().stockpot_gram_many(
        instruction_set(), addresses.ctypes.data, types.ctypes.data, n, tensors, counts.ctypes.data, raw,
        ctypes.addressof(_scratch(n)), out.ctypes.data,
    )  # fmt: skip
    require(lost)
    return out


def mix_many(
    dtypes: Sequence[str],
    addresses: Addresses,
    counts: Counts,
    weights: NDArray[np.float64],
    totals: NDArray[np.float64],
    out_dtype: str,
    out_address: int,
) -> int:
    """Linear combinations one after the other into memory; -1, or the first tensor with something not finite."""
    tensors, n = addresses.shape
    types = np.array([NUMBERS[dtype] for dtype in dtypes], dtype=np.int32)
    found: int = loaded().stockpot_mix_many(
        instruction_set(), addresses.ctypes.data, types.ctypes.data, n, tensors, counts.ctypes.data,
        weights.ctypes.data, totals.ctypes.data, ctypes.addressof(_scratch(n)), out_address, NUMBERS[out_dtype],
    )  # fmt: skip
    return require(found)


def first_nonfinite(row: Row) -> int:
    """Index of the first NaN or Inf, or -1."""
    found: int = loaded().stockpot_first_nonfinite(instruction_set(), address(row), NUMBERS[row.dtype], 0, len(row))
    return require(found)


def copied(row: Row) -> NDArray[np.uint8]:
    """The row's bytes in memory of our own."""
    out = np.empty(_in_memory(row).size, dtype=np.uint8)
    require(loaded().stockpot_copy(out.ctypes.data, address(row), out.size))
    return out


def add_low_rank(
    row: Row,
    out: NDArray[np.float64],
    start: int,
    columns: int,
    left: NDArray[np.float64],
    right: NDArray[np.float64],
    scale: float,
    exact: bool,
) -> None:
    """out[i] = row[i] + scale * (left right)[start + i]."""
    loaded().stockpot_add_low_rank(
        instruction_set(), address(row), NUMBERS[row.dtype], out.ctypes.data, start, start + out.size,
        columns, left.shape[1], left.ctypes.data, right.ctypes.data, scale, exact,
    )  # fmt: skip
