"""What is wrong with a recipe, one line for each finding, with the nearest known key where a key is unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from stockpot import errors

INPUT_SHOWN = 120


def key_problem(path: Sequence[str | int], owner: type[BaseModel], parts: Mapping[str, type[BaseModel]]) -> str:
    """An unknown key: the nearest one that may stand there, or where it belongs, or all that may stand there.

    ``parts``: what lies under a key.
    """
    where, key = ".".join(map(str, path)), str(path[-1])
    known = [*owner.model_fields]
    close = errors.nearest(key, known)
    if close:
        hint = f"did you mean {close}?"
    elif homes := [name for name, part in parts.items() if part is not owner and key in part.model_fields]:
        hint = f"{key} belongs to {' or '.join(homes)}; known here: {', '.join(known)}"
    else:
        hint = f"known: {', '.join(known)}"
    return f"unknown key {where!r}; {hint}"


def value_problem(entry: Any) -> str:
    """A wrong value, or a missing one."""
    where = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "missing":
        return f"the key {where!r} is missing"
    if entry["type"] == "too_short":
        return f"{where}: must not be empty"
    message = entry["msg"].removeprefix("Value error, ")
    if entry["type"] == "value_error" and isinstance(entry["input"], Mapping | BaseModel):
        return f"{where}: {message}".removeprefix(": ")[:400]
    words = f"{message[:1].lower()}{message[1:]}, got {_shown(entry['input'])}"
    return (f"{where}: {words}" if where else words)[:300]


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return "a circle"
    return text if len(text) <= INPUT_SHOWN else text[:INPUT_SHOWN] + " ..."
