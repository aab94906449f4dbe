"""Regular expressions that come with recipes and adapters: whether their time stays in bounds on a tensor's name.

Python's engine tries every way in which a pattern may match. Their number explodes where a repeat lies inside a repeat
(``(a+)+$``: two to the length of the name), and grows by one power of the length for each repeat after another.
"""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

if sys.version_info >= (3, 11):
    from re import _parser as sre  # type: ignore[attr-defined]  # how re reads a pattern: there is no public form
else:
    import sre_parse as sre

WAYS_CAP = 100_000_000
"""Ways to match that may have to be tried: some seconds."""
REPEATS_CAP = 64
"""More are not told apart: so many are too many."""
NAME_CHARACTERS = 100
"""Length of a name for which a pattern is judged before names are known."""
FEW = 32
"""A repeat of at most so many turns is taken for them, one after the other; beyond, it is endless."""
REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")
GROUPS = {"SUBPATTERN": 3, "ATOMIC_GROUP": None, "ASSERT": 1, "ASSERT_NOT": 1}
"""Where the pattern inside a group stands among its arguments."""
_FLAGGED = re.compile(r"\(\?[a-zA-Z-]*[iaLm]")
"""Flags that change what an item takes, case for one; found where they only seem to stand, too."""
_CATEGORIES = {"WORD": r"\w", "DIGIT": r"\d", "SPACE": r"\s"}


class ForeverError(re.error):
    """A pattern that can be read, and may take forever."""


def require_bounded(pattern: str, characters: int = NAME_CHARACTERS) -> None:
    """Raises ``re.error`` where a pattern cannot be read; ForeverError where it may take forever on so many characters.

    >>> require_bounded(r"^model[.]layers[.](\\d+)[.].*_proj"), require_bounded(r"^model([.]\\w+)*[.]weight$")
    (None, None)
    >>> require_bounded("(a+)+$")
    Traceback (most recent call last):
    stockpot._patterns.ForeverError: a repeat inside a repeat may take forever
    """
    if not is_bounded(pattern, characters):
        raise ForeverError(f"its repeats may take forever on {characters} characters")


def is_bounded(pattern: str, characters: int) -> bool:
    """Whether any name of so many characters is quickly done, whatever stands between the pattern's repeats."""
    repeats, ways = _measured(pattern)
    return ways * math.comb(characters + repeats + 1, repeats + 1) <= WAYS_CAP


@lru_cache(maxsize=512)
def _measured(pattern: str) -> tuple[int, int]:
    return _count(*read(pattern))


@lru_cache(maxsize=512)
def read(pattern: str) -> tuple[list[tuple[Any, Any]], bool]:
    """A pattern's items without a last ``.*``; and whether characters match themselves alone, whatever the flags."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on sets that a later version of Python may read otherwise
        re.compile(pattern)
        parsed: Any = sre.parse(pattern)
    items = list(parsed)
    while items and _takes_the_rest(items[-1]):
        items.pop()
    return items, _FLAGGED.search(pattern) is None


def _takes_the_rest(item: tuple[Any, Any]) -> bool:
    """Whether it is a last ``.*``, which is never tried twice."""
    operation, arguments = item
    return str(operation) in REPEATS and arguments[0] == 0 and [str(name) for name, _ in arguments[2]] == ["ANY"]


def _count(items: Any, plain: bool) -> tuple[int, int]:
    """Endless repeats in a pattern, and ways through the rest of it; ForeverError where a repeat multiplies others.

    ``plain``: characters match themselves, whatever their case.
    """
    repeats, ways = 0, 1
    for operation, arguments in items:
        name = str(operation)
        inner: list[tuple[int, int]] = []
        if name in REPEATS:
            least, most, body = arguments
            found, through = _count(body, plain)
            if most <= FEW:
                inner = [(min(found * most, REPEATS_CAP), through**most * (most - least + 1))]
            elif (found, through) == (0, 1) or (plain and _is_divided(body)):
                inner = [(1, 1)]
            else:
                raise ForeverError("a repeat inside a repeat may take forever")
        elif name == "BRANCH":
            parts = [_count(part, plain) for part in arguments[1]]
            inner = [(max(found for found, _ in parts), sum(through for _, through in parts))]
        elif name == "GROUPREF_EXISTS":
            inner = [_count(part, plain) for part in arguments[1:] if part is not None]
        elif name in GROUPS:
            place = GROUPS[name]
            inner = [_count(arguments if place is None else arguments[place], plain)]
        for found, through in inner:
            repeats, ways = min(repeats + found, REPEATS_CAP), min(ways * through, WAYS_CAP + 1)
    return repeats, ways


def _is_divided(body: Any) -> bool:
    r"""Whether there is one way to cut a name into turns of a repeat: ``([.]\w+)*``.

    Each turn begins, or ends, with a character that nothing else in it takes, and has no more than one repeat.
    """
    items = list(body)
    while len(items) == 1 and str(items[0][0]) == "SUBPATTERN":
        items = list(items[0][1][3])
    names = [str(operation) for operation, _ in items]
    inner = [arguments for (_, arguments), name in zip(items, names, strict=True) if name in REPEATS]
    if {"BRANCH", "GROUPREF_EXISTS", *GROUPS} & set(names) or any(len(part) != 1 for _, _, part in inner):
        return False
    if sum(least != most for least, most, _ in inner) > 1:
        return False
    parts = [
        arguments[2][0] if name in REPEATS else (operation, arguments)
        for (operation, arguments), name in zip(items, names, strict=True)
    ]
    return any(
        names[place] == "LITERAL" and not any(takes(part, chr(items[place][1])) for part in others)
        for place, others in ((0, parts[1:]), (-1, parts[:-1]))
    )


def takes(item: tuple[Any, Any], character: str) -> bool:
    """Whether one item of a pattern may match a character; True where that is not known."""
    operation, arguments = str(item[0]), item[1]
    if operation == "AT":
        return False
    if operation == "LITERAL":
        return bool(arguments == ord(character))
    if operation == "NOT_LITERAL":
        return bool(arguments != ord(character))
    if operation == "RANGE":
        return bool(arguments[0] <= ord(character) <= arguments[1])
    if operation == "CATEGORY":
        word = str(arguments).removeprefix("CATEGORY_")
        known = _CATEGORIES.get(word.removeprefix("NOT_"))
        return known is None or (re.match(known, character) is not None) != word.startswith("NOT_")
    if operation == "IN":
        parts: Sequence[tuple[Any, Any]] = [part for part in arguments if str(part[0]) != "NEGATE"]
        return any(takes(part, character) for part in parts) != (len(parts) < len(arguments))
    return True
