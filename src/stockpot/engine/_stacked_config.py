"""``config.json`` of a model whose layers were stacked anew: their number, and what it lists layer by layer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stockpot.checkpoint import CONFIG_DEPTH
from stockpot.engine._layers import COUNT_KEYS
from stockpot.engine._stretches import Stack

_PARTS = {"vision": ("vision", "visual"), "audio": ("audio",)}
"""Parts of configurations, and what the names of their tensors have in them."""


def stacked_config(content: bytes, stack: Stack, template: int, configs: Mapping[int, Mapping[str, Any]]) -> bytes:
    """The template's configuration with the output's layers; unchanged bytes where it is no JSON object.

    ``configs``: of the inputs by number. Each key that counts the template's layers counts the output's; each list with
    an entry for every layer is put together from the inputs that the layers come from.
    """
    try:
        config = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        return content
    if not isinstance(config, dict):
        return content
    _change(config, stack, template, configs, CONFIG_DEPTH)
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _change(
    config: dict[str, Any], stack: Stack, template: int, configs: Mapping[int, Mapping[str, Any]], depth: int
) -> None:
    before = stack.counts.get(template)
    keys = _count_keys(config, stack.prefix)
    counts_here = any(config[key] == before for key in keys)
    for key, value in config.items():
        if isinstance(value, dict):
            if depth > 0 and not _is_other(key, stack.prefix):
                inner = {number: one[key] for number, one in configs.items() if isinstance(one.get(key), Mapping)}
                _change(value, stack, template, inner, depth - 1)
        elif key in keys and value == before:
            config[key] = len(stack.layers)
        elif counts_here and isinstance(value, list) and len(value) == before and "layer" in key:
            config[key] = _gathered(key, value, stack, configs)


def _count_keys(config: Mapping[str, Any], prefix: str) -> list[str]:
    """Keys that count these layers: those of the decoder where it is said apart, and never those of the other."""
    keys = [key for key in COUNT_KEYS if type(config.get(key)) is int]
    apart = [key for key in keys if "decoder" in key]
    if "decoder" in prefix and apart:
        return apart
    return [key for key in keys if key not in apart] if "encoder" in prefix else keys


def _gathered(key: str, own: Sequence[Any], stack: Stack, configs: Mapping[int, Mapping[str, Any]]) -> list[Any]:
    """The list's entries for the output's layers."""
    found = []
    for number, layer in stack.layers:
        theirs = configs.get(number, {}).get(key)
        listed = theirs if isinstance(theirs, list) and layer < len(theirs) else own
        found.append(listed[min(layer, len(listed) - 1)])
    return found


def _is_other(key: str, prefix: str) -> bool:
    """Whether a part of a configuration is of another part of the model than these layers."""
    return any(sort in key and not any(word in prefix for word in words) for sort, words in _PARTS.items())
