"""Which tensors have a row for each token: by their names and shapes, no architecture asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stockpot import errors
from stockpot.checkpoint import CONFIG_DEPTH, Source, TensorInfo

SIZE_KEY = "vocab_size"
EMBEDDING_LEAVES = frozenset(
    (
        *("embed_tokens", "wte", "word_embeddings", "shared", "tok_embeddings", "embed_in", "embeddings", "emb"),
        *("token_embedding", "embedding", "tokens_embed"),
    )
)
"""What modules are called that look tokens up."""
HEAD_LEAVES = frozenset(
    (
        *("lm_head", "embed_out", "output", "decoder", "proj_out", "vocab_projector", "generator_lm_head", "head"),
        *("output_layer", "predictions", "pred_layer", "proj", "final_logits_bias", "entity_predictions"),
    )
)
"""What modules, or buffers, are called that score them."""


def sizes_stated(config: Mapping[str, Any], depth: int = CONFIG_DEPTH) -> Iterator[int]:
    """Every ``vocab_size`` of a configuration, its own first, then those of its parts.

    >>> list(sizes_stated({"text_config": {"vocab_size": 3}, "vocab_size": 5}))
    [5, 3]
    """
    if type(size := config.get(SIZE_KEY)) is int:
        yield size
    for part in config.values():
        if depth > 0 and isinstance(part, dict):
            yield from sizes_stated(part, depth - 1)


def rows_of(info: TensorInfo) -> int | None:
    """The longer of what may be its rows: dim 0, or dim 1 of a buffer of one row; None for a number."""
    if not info.shape:
        return None
    return info.shape[1] if len(info.shape) == 2 and info.shape[0] == 1 else info.shape[0]


def leaf(name: str) -> str:
    """The module's own name, or the buffer's.

    >>> leaf("model.embed_tokens.weight"), leaf("final_logits_bias"), leaf("unet/wte.weight")
    ('embed_tokens', 'final_logits_bias', 'wte')
    """
    parts = name.rpartition("/")[2].split(".")
    return parts[-2] if len(parts) > 1 and parts[-1] in ("weight", "bias") else parts[-1]


def vocabulary_rows(source: Source) -> int:
    """How many tokens an input has rows for; raises TokenizerError where nothing looks tokens up."""
    stated = [size for part in source.parts for size in sizes_stated(part.config)]
    found = [
        info.shape[0]
        for name, info in source.tensors.items()
        if leaf(name) in EMBEDDING_LEAVES and len(info.shape) == 2 and name.endswith("weight")
    ]
    if agreed := [size for size in stated if size in found]:
        return agreed[0]
    if found and not stated:
        return max(found)
    raise errors.TokenizerError(
        "the embedding of tokens cannot be told", file=source.ref,
        expected=f"a matrix of {stated[0]} rows, as vocab_size says" if stated else "an embedding by a known name",
        got=", ".join(map(str, sorted(set(found)))) + " rows" if found else None,
        remedy="leave tokenizer and tokenizer_source out: the tensors are then merged as they are",
    )  # fmt: skip


def is_of_tokens(name: str, info: TensorInfo, rows: int) -> bool:
    """Whether a tensor has a row for each of so many tokens."""
    return rows_of(info) == rows and leaf(name) in EMBEDDING_LEAVES | HEAD_LEAVES


def is_doubtful(name: str, info: TensorInfo, rows: int) -> bool:
    """Whether a tensor has as many rows, of a name that does not tell why."""
    return rows_of(info) == rows and leaf(name) not in EMBEDDING_LEAVES | HEAD_LEAVES
