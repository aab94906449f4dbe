"""Layers of a model, by the names of its tensors alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stockpot.checkpoint import CONFIG_DEPTH, HEADS

_NUMBERED = re.compile(r"(?:^|[./])([A-Za-z_][^./]*)\.(\d{1,9})(?=\.|$)")
_WORDS = frozenset(
    ("layers", "layer", "h", "block", "blocks", "resblocks", "encoder_layers", "decoder_layers", "transformer_layers")
)
"""What lists of layers are called; beside them only the list of most tensors is one."""
COUNT_KEYS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers"),
    *("decoder_layers", "encoder_num_layers", "decoder_num_layers", "depth"),
)
"""What configurations call the number of layers."""
_FIRST = re.compile(r"embed|^(?:wte|wpe|shared|ln_pre|cls_token|class_token|pos_encoding)$")
"""Components of names that come before the layers."""


def split_layer(name: str) -> tuple[str, int, str] | None:
    """(what stands before the number, the number, what follows) of a tensor in a list of things; None of another.

    >>> split_layer("model.layers.3.mlp.experts.1.w"), split_layer("lm_head.weight")
    (('model.layers.', 3, '.mlp.experts.1.w'), None)
    """
    match = _NUMBERED.search(name)
    return None if match is None else (name[: match.start(2)], int(match[2]), name[match.end(2) :])


def layer_of(name: str) -> str | None:
    """The layer that a tensor lies in, as its name begins; None outside layers.

    >>> layer_of("model.layers.3.mlp.weight")
    'model.layers.3'
    """
    found = split_layer(name)
    return None if found is None else f"{found[0]}{found[1]}"


def is_before_layers(name: str) -> bool:
    """Whether a tensor outside the layers comes before them, as embeddings do; heads and last norms come after.

    >>> is_before_layers("model.embed_tokens.weight"), is_before_layers("model.norm.weight")
    (True, False)
    """
    return not name.endswith(HEADS) and any(_FIRST.search(part) for part in name.split("."))


@dataclass(frozen=True)
class Layers:
    """The lists of layers of a model: how many there are, by what stands before their number; the largest first."""

    counts: Mapping[str, int]

    @classmethod
    def of(cls, names: Iterable[str]) -> Layers:
        """By the names of tensors. Cost: linear.

        >>> Layers.of(["h.0.w", "h.1.w", "head.0.w"]).counts
        {'h.': 2}
        """
        tensors: dict[str, int] = {}
        counts: dict[str, int] = {}
        for name in names:
            if (found := split_layer(name)) is not None:
                prefix, number, _ = found
                tensors[prefix] = tensors.get(prefix, 0) + 1
                counts[prefix] = max(counts.get(prefix, 0), number + 1)
        ranked = sorted(tensors, key=lambda prefix: -tensors[prefix])
        kept = [prefix for place, prefix in enumerate(ranked) if not place or prefix[:-1].rpartition(".")[2] in _WORDS]
        return cls({prefix: counts[prefix] for prefix in kept})

    def place(self, name: str) -> float:
        """Where a tensor lies: 0 in the first layer, 1 in the last (or only) one, 0 outside the layers.

        >>> Layers.of(["h.0.w", "h.1.w", "h.2.w"]).place("h.1.w")
        0.5
        """
        found = split_layer(name)
        count = 0 if found is None else self.counts.get(found[0], 0)
        return 0.0 if found is None or not count else place_of(found[1], count)


def place_of(number: int, count: int) -> float:
    """Where a layer lies among so many: 0 to 1; the only one at 1."""
    return number / (count - 1) if count > 1 else 1.0


def stated_counts(config: Mapping[str, Any], depth: int = CONFIG_DEPTH) -> set[int]:
    """Every number of layers that a configuration states, of any of its parts.

    >>> stated_counts({"n_layer": 3, "vision_config": {"num_hidden_layers": 2}})
    {2, 3}
    """
    found: set[int] = set()
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= stated_counts(value, depth - 1) if depth > 0 else set()
        elif key in COUNT_KEYS and type(value) is int:
            found.add(value)
    return found
