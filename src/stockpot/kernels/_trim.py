"""Sums of trimmed differences: of each input's difference from the first, what is kept, and what the kept come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from stockpot.kernels import _native, _native_trim, _plain_trim
from stockpot.kernels._rows import NonFiniteInputError, OverflowedError, Row, first_nonfinite
from stockpot.kernels._selection import EVERYTHING, NOTHING, Cut

_LIMITS = {
    "bfloat16": float.fromhex("0x1.ffp+127"),
    "float16": 65520.0,
    "float32": float.fromhex("0x1.ffffffp+127"),
    "float64": math.inf,
}
"""What is rounded to Inf, and no number below it."""
_TINY = 1e-12
"""Share of the weights' magnitudes under which a sum of some of them is zero but for rounding."""


@dataclass(frozen=True, slots=True)
class Part:
    """What of one input's differences d is kept, and what it counts.

    Kept are those that the cut ``low`` has and the cut from behind ``high`` has not, and of these each with probability
    ``chance``: where its random number is below. ``chances``: one probability for each element of the piece instead, by
    which what is kept is divided under ``inverse``. The part is weight * (scale * d).
    """

    weight: float
    scale: float = 1.0
    low: Cut = EVERYTHING
    high: Cut = NOTHING
    chance: float = 1.0
    key: tuple[int, int] = (0, 0)
    chances: NDArray[np.float64] | None = None
    inverse: bool = False


@dataclass(frozen=True, slots=True)
class Sum:
    """How parts are added: under ``consensus``, of each element those with the sign of their sum (zero: positive).

    Under ``normalize`` the sum is divided by the weights of those that were added, of each element (where these cancel,
    by nothing), or without consensus by all weights, which do not cancel. ``scale`` is of the whole.
    """

    consensus: bool
    normalize: bool
    scale: float = 1.0


def random_key(seed: int, name: str, number: int) -> tuple[int, int]:
    """The key of a tensor's random numbers: of a seed, the tensor's name and a model's number."""
    digest = xxhash.xxh3_64_intdigest(f"{seed}/{number}/{name}".encode("utf-8", "surrogatepass"))
    return digest & 0xFFFFFFFF, digest >> 32


def trim(
    rows: Sequence[Row], place: int, parts: Sequence[Part], total: Sum, out: Row, *, pass_nonfinite: bool = False
) -> None:
    """out = w_0 + scale * (sum of the parts), each element by itself, in float64 and rounded once; no part, w_0's bits.

    ``rows``: w_0 and one for each part, a piece of a tensor that begins at ``place``, a multiple of 2^9. The random
    number of element e is word (e mod 32) div 8 of counter (e div 32) 8 + e mod 8 in Philox 4x32-10 under the
    part's key, divided by 2^32. Raises NonFiniteInputError and OverflowedError unless ``pass_nonfinite``, under which
    what is not finite is kept and spreads. Cost: one read, one write.
    """
    weights = [part.weight for part in parts]
    tiny = _TINY * math.fsum(map(abs, weights))
    form = _native_trim.Sum(
        lambda_=total.scale,
        divisor=math.fsum(weights) if total.normalize and not total.consensus else 1.0,
        tiny=tiny,
        most=math.nextafter(_LIMITS[out.dtype], 0.0),
        consensus=total.consensus,
        normalize=total.normalize,
        pass_nonfinite=pass_nonfinite,
    )
    narrow = [_plain_trim.is_narrow(rows[0].dtype, row.dtype) for row in rows[1:]]
    table = (_native_trim.Part * len(parts))(*map(structure, parts, narrow))
    if _native.library() is None:
        at = _plain_trim.trim(rows, place, list(table), form, out)
    else:
        at = _native_trim.trim(rows, place, table, form, out)
    if at >= 0:
        refuse(rows, at)


def refuse(rows: Sequence[Row], at: int) -> None:
    """Raise NonFiniteInputError for the input that is not finite there, else OverflowedError."""
    for source, row in enumerate(rows):
        if first_nonfinite(row.cut(at, at + 1)) >= 0:
            raise NonFiniteInputError(source, at)
    raise OverflowedError(at)


def structure(part: Part, narrow: bool) -> _native_trim.Part:
    """As the programs take it: limits of differences in float64, of ``narrow`` ones those that round to a key."""
    low, above_low = _limits(part.low.key, narrow)
    # What is not finite is in no upper cut: NaN is a limit that nothing reaches.
    high, above_high = (math.nan, math.nan) if math.isinf(part.high.key) else _limits(part.high.key, narrow)
    return _native_trim.Part(
        weight=part.weight,
        scale=part.scale,
        low=low,
        above_low=above_low,
        low_until=part.low.until,
        # Of equals of the upper cut the first stay: there the limit is the next number.
        high=above_high,
        above_high=high,
        high_until=part.high.until,
        chance=part.chance,
        key=part.key,
        chances=None if part.chances is None else part.chances.ctypes.data,
        inverse=part.inverse,
    )


def _limits(key: float, narrow: bool) -> tuple[float, float]:
    """The least number with that key, and the least with a larger one."""
    if not narrow:
        return key, math.nextafter(key, math.inf)
    following = np.nextafter(np.float32(key), np.float32(np.inf))
    return _least(key), math.inf if math.isinf(key) else _least(float(following))


def _least(key: float) -> float:
    """The least number that rounds to a float."""
    if not key > 0.0:
        return 0.0
    if math.isinf(key):
        return _LIMITS["float32"]
    middle = (key + float(np.nextafter(np.float32(key), np.float32(0.0)))) / 2.0
    return middle if np.float32(middle) == key else math.nextafter(middle, math.inf)
