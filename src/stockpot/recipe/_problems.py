"""What is wrong with a recipe, one line for each finding, with the nearest known key where a key is unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from stockpot import errors

INPUT_SHOWN = 120
_WORDS = {
    "too_short": "must not be empty",
    "model_type": "must be a map of keys to values",
    "dict_type": "must be a map of keys to values",
    "tuple_type": "must be a list",
    "string_pattern_mismatch": "must be made of letters, digits, '.', '_' and '-'",
}
"""In place of pydantic's own, by type of finding."""
_NEVER_MEANT = ("tensor_weights",)
"""Keys that people do not type, and so do not mistype."""


def in_order(found: Iterable[Any]) -> list[Any]:
    """Pydantic's findings without those that follow from others, unknown keys first: they explain what is missing."""
    entries = list(found)
    holders = {entry["loc"][:depth] for entry in entries for depth in range(len(entry["loc"]))}
    # A list with a bad item is also reported as too short.
    kept = [entry for entry in entries if entry["type"] != "too_short" or entry["loc"] not in holders]
    return sorted(kept, key=lambda entry: entry["type"] != "extra_forbidden")


def key_problem(path: Sequence[str | int], owner: type[BaseModel], parts: Mapping[str, type[BaseModel]]) -> str:
    """An unknown key: where it belongs, or the nearest one that may stand there, or all that may stand there.

    ``parts``: what lies under a key.
    """
    where, key = ".".join(map(str, path)), str(path[-1])
    known = [name for name in owner.model_fields if name not in _NEVER_MEANT]
    if homes := [name for name, part in parts.items() if part is not owner and key in part.model_fields]:
        hint = f"{key} belongs to {' or '.join(homes)}"
    elif close := next((name for name in known if name.startswith(key)), None) or errors.nearest(key, known):
        hint = f"did you mean {close}?"
    else:
        under = ["what the method takes stands under parameters"] if "parameters" in known else []
        hint = "; ".join([f"known: {', '.join(known)}", *under])
    return f"unknown key {where!r}; {hint}"


def value_problem(entry: Any) -> str:
    """A wrong value, or a missing one."""
    where, given = ".".join(str(part) for part in entry["loc"]), entry["input"]
    if entry["type"] == "missing":
        return f"the key {where!r} is missing"
    if entry["type"] == "too_short":
        return f"{where}: {_WORDS['too_short']}"
    message = entry["msg"].removeprefix("Value error, ")
    if entry["type"] == "value_error" and isinstance(given, Mapping | BaseModel):
        return f"{where}: {message}".removeprefix(": ")[:400]
    words = _WORDS.get(entry["type"], message[:1].lower() + message[1:])
    words = f"{words}, got {_shown(given)}"
    if entry["type"] == "literal_error" and isinstance(given, str):
        close = errors.nearest(given, entry["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", "))
        words += f"; did you mean {close}?" if close else ""
    return (f"{where}: {words}" if where else words)[:300]


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return "a circle"
    return text if len(text) <= INPUT_SHOWN else text[:INPUT_SHOWN] + " ..."
