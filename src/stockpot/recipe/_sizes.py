"""Sizes as people write them."""

from __future__ import annotations

import re

from stockpot import errors

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def parse_size(text: object) -> int:
    """Bytes of a size such as ``5GB`` (decimal) or ``192MiB`` (binary).

    >>> parse_size("5GB"), parse_size("192MiB"), parse_size(4096)
    (5000000000, 201326592, 4096)
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", str(text))
    if isinstance(text, bool) or match is None or match[2].upper() not in _UNITS:
        raise errors.ParameterError("not a size", expected="a number with KB, MB, GB, MiB or GiB", got=repr(text))
    size = float(match[1]) * _UNITS[match[2].upper()]
    if not 1 <= size < 2**63:
        raise errors.ParameterError("a size must be above 0 and below 8 EiB", got=repr(text)[:80])
    return int(size)
