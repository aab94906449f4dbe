"""Configurations in the output's vocabulary: its size, and the numbers of special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stockpot.checkpoint import CONFIG_DEPTH
from stockpot.vocabulary._tensors import SIZE_KEY

_ENDS = ("_token_id", "_token_ids", "_token_index", "_token_indexes")
_LISTS = ("suppress_tokens", "begin_suppress_tokens")


LOST, UNUSED = -1, -2
"""Numbers of tokens that the output lacks, and numbers that no token has."""


@dataclass(frozen=True)
class Numbering:
    """From an input's numbers to the output's.

    ``numbers``: for each of its numbers the output's, or ``LOST`` or ``UNUSED``; ``own_roles`` and ``roles``: the
    numbers of its special tokens, and of the output's; ``own_rows`` and ``rows``: the sizes of their vocabularies.
    """

    numbers: NDArray[np.int64]
    own_roles: Mapping[str, int]
    roles: Mapping[str, int]
    own_rows: int
    rows: int

    def changed(self, content: bytes) -> bytes:
        """A configuration (``config.json`` or ``generation_config.json``) by the output's numbers; unchanged bytes
        where nothing changes, or where it is no JSON object."""
        try:
            config = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError):
            return content
        if not isinstance(config, dict) or not self._change(config, CONFIG_DEPTH):
            return content
        return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")

    def _change(self, config: dict[str, Any], depth: int) -> bool:
        changed = False
        for key, value in config.items():
            new = value
            if isinstance(value, dict):
                changed |= depth > 0 and self._change(value, depth - 1)
            elif key == SIZE_KEY and value == self.own_rows:
                new = self.rows
            elif key.endswith(_ENDS) or key in _LISTS:
                new = self._renumbered(key, value)
            if new != value:
                config[key] = new
                changed = True
        return changed

    def _renumbered(self, key: str, value: object) -> object:
        """A special token that the output's tokenizer has another for becomes that; others stay the tokens they are."""
        role = key.removesuffix("_token_id")
        own, its = self.own_roles.get(role), self.roles.get(role)
        is_replaced = own is not None and its is not None and self._number(own) != its
        if isinstance(value, list) and value:
            kept = [its] * is_replaced + [self._number(one) for one in value]
            return list(dict.fromkeys(one for one in kept if one is not None)) or None
        if is_replaced and value == own and type(value) is int:
            return its
        return self._number(value)

    def _number(self, value: object) -> object:
        """The number of the same token; None where the output has it not; what is no token stays."""
        if type(value) is not int or not 0 <= value < len(self.numbers) or self.numbers[value] == UNUSED:
            return value
        new = int(self.numbers[value])
        return None if new == LOST else new

    def lost(self, config: Mapping[str, Any], depth: int = CONFIG_DEPTH) -> Iterator[str]:
        """Keys of a configuration that name a token which the output's vocabulary lacks, and name none then."""
        for key, value in config.items():
            if isinstance(value, dict):
                yield from self.lost(value, depth - 1) if depth > 0 else ()
            elif value is not None and key.endswith(_ENDS) and self._renumbered(key, value) is None:
                yield key


def numbering(
    own: Mapping[str, int],
    ids: Mapping[str, int],
    roles: tuple[Mapping[str, str], Mapping[str, str]],
    rows: tuple[int, int],
) -> Numbering:
    """How the numbers of an input become the output's; of ``roles`` and ``rows`` the input's come first."""
    numbers = np.full(max(own.values(), default=-1) + 1, UNUSED, np.int64)
    for text, number in own.items():
        numbers[number] = ids.get(text, LOST)
    before, after = (
        {role: known[text] for role, text in its.items() if text in known}
        for its, known in zip(roles, (own, ids), strict=True)
    )
    return Numbering(numbers, before, after, *rows)
