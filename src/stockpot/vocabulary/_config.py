"""Configurations in the output's vocabulary: its size, and the numbers of special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stockpot.checkpoint import CONFIG_DEPTH
from stockpot.vocabulary._tensors import SIZE_KEY

_ENDS = ("_token_id", "_token_ids", "_token_index", "_token_indexes")
_LISTS = ("suppress_tokens", "begin_suppress_tokens")


@dataclass(frozen=True)
class Numbering:
    """From an input's numbers to the output's.

    ``texts``: its tokens by number; ``ids``: the output's numbers by token; ``roles``: what special tokens each has.
    """

    texts: Mapping[int, str]
    ids: Mapping[str, int]
    own_roles: Mapping[str, str]
    roles: Mapping[str, str]
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
        replaced = own is not None and its is not None and own != its and its in self.ids
        if isinstance(value, list) and value:
            kept = [self._number(one) for one in value]
            first = [self.ids[its]] if replaced and its is not None else []
            found = list(dict.fromkeys([*first, *(one for one in kept if one is not None)]))
            return found or None
        if not _is_number(value):
            return value
        if replaced and its is not None and self.texts.get(int(str(value))) == own:
            return self.ids[its]
        return self._number(value)

    def _number(self, value: object) -> object:
        """The number of the same token; None where the output has it not; what is no token stays."""
        if not _is_number(value) or (text := self.texts.get(int(str(value)))) is None:
            return value
        return self.ids.get(text)

    def lost(self, config: Mapping[str, Any], depth: int = CONFIG_DEPTH) -> Iterator[str]:
        """Keys of a configuration that name a token which the output's vocabulary lacks, and name none then."""
        for key, value in config.items():
            if isinstance(value, dict):
                yield from self.lost(value, depth - 1) if depth > 0 else ()
            elif value is not None and key.endswith(_ENDS) and self._renumbered(key, value) is None:
                yield key


def _is_number(value: object) -> bool:
    return type(value) is int
