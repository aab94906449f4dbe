"""In how many ways a pattern can be tried on a name that is known: what Python's engine would do, counted, not done."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stockpot._patterns import FEW, GROUPS, REPEATS, WAYS_CAP, ForeverError, is_bounded, read, takes

Ways = NDArray[np.float64]
"""For each place in a name, in how many ways it is reached."""
_ONE = ("ANY", "IN", "LITERAL", "NOT_LITERAL")


def require_bounded_on(pattern: str, name: str) -> None:
    """Raises ForeverError where a pattern may take forever on this very name; what lies between its repeats counts.

    >>> require_bounded_on(".*layers.*mlp.*down.*weight.*", "m" * 900 + ".layers.0.mlp.down_proj.weight")
    >>> require_bounded_on(".*.*.*e!", "e" * 900)
    Traceback (most recent call last):
    stockpot._patterns.ForeverError: its repeats may take forever on 900 characters
    """
    if not is_bounded(pattern, len(name)) and ways(pattern, name) > WAYS_CAP:
        raise ForeverError(f"its repeats may take forever on {len(name)} characters")


def ways(pattern: str, name: str) -> float:
    """Steps of ``re.search`` that finds nothing; counting stops beyond the cap."""
    items, plain = read(pattern)
    counted = _Count(name, plain)
    counted.through(items, np.ones(len(name) + 1))
    return counted.total


class _Count:
    """Ways through the items of a pattern, each item from all places that the ones before reach."""

    def __init__(self, name: str, plain: bool) -> None:
        self.total = 0.0
        self._name, self._plain = name, plain
        self._codes = np.array([ord(character) for character in name], np.int64)

    def through(self, items: Any, at: Ways) -> Ways:
        """Where items one after the other lead from ``at``."""
        for operation, arguments in items:
            if self.total > WAYS_CAP or not at.any():
                break
            at = self._step(str(operation), (operation, arguments), at)
            self.total += float(at.sum())
        return at

    def _step(self, name: str, item: tuple[Any, Any], at: Ways) -> Ways:
        arguments = item[1]
        if name in REPEATS:
            return self._repeat(arguments, at)
        if name == "BRANCH":
            return np.asarray(np.sum([self.through(part, at) for part in arguments[1]], axis=0))
        if name == "GROUPREF_EXISTS":
            return np.asarray(np.sum([self.through(part or (), at) for part in arguments[1:]], axis=0))
        if name in GROUPS:
            place = GROUPS[name]
            inside = self.through(arguments if place is None else arguments[place], at)
            return at if name.startswith("ASSERT") else inside
        if name == "GROUPREF":
            return np.cumsum(at)
        if name == "AT":
            begins = self._plain and str(arguments) in ("AT_BEGINNING", "AT_BEGINNING_STRING")
            return np.concatenate([at[:1], np.zeros(len(at) - 1)]) if begins else at
        moved = np.zeros_like(at)
        moved[1:] = at[:-1] * self._taken(item)
        return moved

    def _repeat(self, arguments: Any, at: Ways) -> Ways:
        least, most, body = arguments
        if most > FEW and len(body) == 1 and str(body[0][0]) in _ONE:
            return self._run(body[0], at)
        reached, turns = at if least == 0 else np.zeros_like(at), 0
        while turns < min(most, max(least, len(at))) and at.any() and self.total <= WAYS_CAP:
            at, turns = self.through(body, at), turns + 1
            if turns >= least:
                reached = reached + at
        return reached

    def _run(self, item: tuple[Any, Any], at: Ways) -> Ways:
        taken = self._taken(item)
        if taken.all():
            return np.cumsum(at)
        reached = at.tolist()
        for place, follows in enumerate(taken.tolist()):
            if follows:
                reached[place + 1] += reached[place]
        return np.array(reached)

    def _taken(self, item: tuple[Any, Any]) -> NDArray[np.bool_]:
        """Which characters of the name an item takes."""
        if not self._plain or str(item[0]) == "ANY":
            return np.ones(len(self._name), np.bool_)
        if str(item[0]) == "LITERAL":
            return np.asarray(self._codes == item[1])
        known = {character: takes(item, character) for character in set(self._name)}
        return np.array([known[character] for character in self._name], np.bool_)
