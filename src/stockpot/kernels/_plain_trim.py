"""What native/trim.h does, by numpy: the same bits, for machines without a C compiler."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stockpot.kernels._constants import BATCH, BLOCK
from stockpot.kernels._wide import read_wide, write_wide

if TYPE_CHECKING:
    from stockpot.kernels._native_trim import Part, Sum
    from stockpot.kernels._rows import Row
    from stockpot.kernels._selection import Hunt

Doubles = NDArray[np.float64]


def differences(rows: Sequence[Row], row: int) -> Doubles:
    """Of a row from the first."""
    found: Doubles = read_wide(rows[row]) - read_wide(rows[0])
    return found


def keys_of(rows: Sequence[Row], row: int) -> Doubles:
    """Magnitudes of differences: in float32 of two 16-bit rows, else in float64."""
    if is_narrow(rows[0].dtype, rows[row].dtype):
        base, own = (read_wide(one).astype(np.float32) for one in (rows[0], rows[row]))
        with np.errstate(all="ignore"):
            apart: Doubles = np.abs(own - base).astype(np.float64)
        return apart
    return np.abs(differences(rows, row))


def is_narrow(*dtypes: str) -> bool:
    """Whether all are of 16 bits."""
    return set(dtypes) <= {"bfloat16", "float16"}


def look(rows: Sequence[Row], place: int, run: int, step: int, hunts: Sequence[Hunt]) -> None:
    """Go on with searches in ``run`` elements of every ``step``."""
    where = np.arange(len(rows[0]))
    where = where[where % step < run]
    row = 0
    for hunt in hunts:
        search = hunt.search
        if search.row != row:
            row = search.row
            keys = keys_of(rows, row)[where]
        inside = (keys >= search.low) & ~(keys >= search.high)
        found, places = keys[inside], where[inside] + place
        search.above += int((keys >= search.high).sum())
        search.inside += found.size
        if search.room or hunt.bins is not None:
            search.least = min(search.least, float(found.min(initial=np.inf)))
            search.most = max(search.most, float(found.max(initial=0.0)))
        np.add.at(hunt.blocks, places // BLOCK, 1)
        if hunt.bins is not None:
            np.add.at(hunt.bins, (found.view(np.int64) - search.first) >> search.shift, 1)
        stored = slice(search.stored, min(search.stored + found.size, search.room))
        size = stored.stop - stored.start
        hunt.found[stored], hunt.places[stored] = found[:size], places[:size]
        search.stored += size


def random_words(place: int, count: int, key: Sequence[int]) -> NDArray[np.uint32]:
    """The words of elements ``place`` to ``place + count``: Philox 4x32-10."""
    elements = np.arange(place, place + count, dtype=np.uint64)
    counters = elements // BATCH * 8 + elements % 8
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    a, b, c, d = counters & low, counters >> shift, np.zeros_like(counters), np.zeros_like(counters)
    k0, k1 = key
    for _ in range(10):
        p, q = np.uint64(0xD2511F53) * a, np.uint64(0xCD9E8D57) * c
        a, b, c, d = (q >> shift) ^ b ^ np.uint64(k0), q & low, (p >> shift) ^ d ^ np.uint64(k1), p & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    found = np.choose((elements % BATCH // 8).astype(np.int64), [a, b, c, d])
    return found.astype(np.uint32)


def trim(rows: Sequence[Row], place: int, parts: Sequence[Part], form: Sum, out: Row) -> int:
    """A piece of the sum; -1, or the first index at which something is not finite."""
    with np.errstate(all="ignore"):
        base = read_wide(rows[0])
        held = [
            part.weight * (part.scale * _kept(differences(rows, number), place, part))
            for number, part in enumerate(parts, 1)
        ]
        total = np.zeros_like(base)
        for part in held:
            total = total + part
        if form.consensus:
            result, weights = np.zeros_like(base), np.zeros_like(base)
            for part, own in zip(held, parts, strict=True):
                agrees = np.where(total >= 0.0, part > 0.0, part < 0.0) | np.isnan(part)
                result = result + np.where(agrees, part, 0.0)
                weights = weights + np.where(agrees, own.weight, 0.0)
            if form.normalize:
                result = result / np.where(np.abs(weights) > form.tiny, weights, 1.0)
        else:
            result = total / form.divisor
        step = form.lambda_ * result
        result = np.where(step == 0.0, base, base + step)
        bad = ~(np.abs(result) <= form.most)
        for row in rows:
            bad |= ~np.isfinite(read_wide(row))
        write_wide(result, out)
    return -1 if form.pass_nonfinite or not bad.any() else int(np.argmax(bad))


def _kept(found: Doubles, place: int, part: Part) -> Doubles:
    keys = np.abs(found)
    elements = np.arange(place, place + found.size)
    low = np.where(elements < part.low_until, part.low, part.above_low)
    high = np.where(elements < part.high_until, part.high, part.above_high)
    found = np.where(~(keys < low) & ~(keys >= high), found, 0.0)
    if part.chance >= 1.0 and not part.chances:
        return found
    chances = np.full(found.size, part.chance)
    if part.chances:
        chances = np.ctypeslib.as_array((ctypes.c_double * found.size).from_address(part.chances)).copy()
    stays = random_words(place, found.size, part.key) * 2.0**-32 < chances
    return np.where(stays, found * (1.0 / chances) if part.chances and part.inverse else found, 0.0)


def kept_of(rows: Sequence[Row], row: int, place: int, part: Part) -> tuple[Doubles, Doubles]:
    """Magnitudes of a row's differences, and of those among them that a part's cuts keep, the others zero."""
    found = differences(rows, row)
    return np.abs(found), np.abs(_kept(found, place, part))
