"""The benchmark models as data: which tensors, of which dtype, in how many files."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Tensors = Iterator[tuple[str, tuple[int, ...]]]

BYTES_PER_ELEMENT = {"bfloat16": 2, "float32": 4}
HEADS = 32
KV_HEADS = 4
LAYERS = 22
MOE_TENSORS = 45_000
MOE_EXPERTS = 256


@dataclass(frozen=True)
class Entry:
    """Models of one layout: a base and its fine-tunes.

    ``tensors`` and ``config`` take the scale, the fraction of the full size wanted.
    """

    dtype: str
    tensors: Callable[[float], Tensors]
    config: Callable[[float], dict[str, Any]]
    shards: int = 2

    def model_bytes(self, scale: float) -> int:
        """The tensor bytes of one model, headers not counted."""
        width = BYTES_PER_ELEMENT[self.dtype]
        return sum(math.prod(shape) * width for _, shape in self.tensors(scale))


def names(fine_tunes: int) -> tuple[str, ...]:
    """The folder names: the base first, then the fine-tunes."""
    return ("base", *(f"ft{i}" for i in range(1, fine_tunes + 1)))


def dense_sizes(scale: float) -> tuple[int, int, int]:
    """Hidden, intermediate and vocabulary size; 2048, 5632, 32000 at scale 1."""
    head = max(2, 2 * round(32 * math.sqrt(scale)))
    hidden = HEADS * head
    return hidden, hidden * 11 // 4, max(HEADS, round(32000 * math.sqrt(scale)))


def dense_tensors(scale: float) -> Tensors:
    """A Llama-shaped decoder with an untied head: 1.1 B parameters at scale 1."""
    hidden, inner, vocabulary = dense_sizes(scale)
    narrow = hidden // HEADS * KV_HEADS
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        yield f"{block}.self_attn.q_proj.weight", (hidden, hidden)
        yield f"{block}.self_attn.k_proj.weight", (narrow, hidden)
        yield f"{block}.self_attn.v_proj.weight", (narrow, hidden)
        yield f"{block}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{block}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{block}.mlp.up_proj.weight", (inner, hidden)
        yield f"{block}.mlp.down_proj.weight", (hidden, inner)
        yield f"{block}.input_layernorm.weight", (hidden,)
        yield f"{block}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def dense_config(scale: float) -> dict[str, Any]:
    """The configuration of the dense model, as its library writes it."""
    hidden, inner, vocabulary = dense_sizes(scale)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "max_position_embeddings": 2048,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": vocabulary,
    }


def moe_tensors(scale: float) -> Tensors:
    """Many small tensors, named as the experts of a mixture; scale sets how many."""
    for index in range(max(1, round(MOE_TENSORS * scale))):
        expert, part = divmod(index, 3)
        layer, expert = divmod(expert, MOE_EXPERTS)
        name = ("gate_proj", "up_proj", "down_proj")[part]
        shape = (256, 64) if name == "down_proj" else (64, 256)
        yield f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight", shape


def single_tensors(scale: float) -> Tensors:
    """One tensor of 4 GiB at scale 1, to be taken piecewise."""
    yield "weight", (max(1, round(262_144 * scale)), 8192)


def bare_config(scale: float) -> dict[str, Any]:
    """A configuration for shapes that no model library has."""
    return {"architectures": ["StockpotBenchmark"], "scale": scale}


ENTRIES: Mapping[str, Entry] = MappingProxyType(
    {
        "dense-bf16": Entry("bfloat16", dense_tensors, dense_config),
        "dense-fp32": Entry("float32", dense_tensors, dense_config),
        "moe": Entry("bfloat16", moe_tensors, bare_config),
        "single": Entry("bfloat16", single_tensors, bare_config, shards=1),
    }
)
