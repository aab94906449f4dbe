"""The two tensors that language models tie: their names, and what a configuration says of them."""

from collections.abc import Mapping
from typing import Any

TIE = "tie_word_embeddings"
CONFIG_DEPTH = 20
"""Parts in parts of a configuration that are looked into."""

HEADS = (
    "lm_head.weight",
    "embed_out.weight",
    "output.weight",
    "decoder.weight",
    "proj_out.weight",
    "vocab_projector.weight",
)
EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "shared.weight",
    "tok_embeddings.weight",
    "embed_in.weight",
    "backbone.embeddings.weight",
)
"""What the names of heads and of embeddings end with."""


def ties_words(config: Mapping[str, Any], depth: int = CONFIG_DEPTH) -> bool:
    """Whether a configuration ties head and embedding; one of several parts may say so in the part alone.

    >>> ties_words({"tie_word_embeddings": True}), ties_words({"text_config": {"tie_word_embeddings": True}})
    (True, True)
    >>> ties_words({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}), ties_words({})
    (False, False)
    """
    stated = config.get(TIE)
    if isinstance(stated, bool):
        return stated
    return depth > 0 and any(ties_words(part, depth - 1) for part in config.values() if isinstance(part, dict))
