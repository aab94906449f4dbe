"""Architectures of transformers, each tiny: a class, a configuration, batches to train on. Text, and sums of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

WIDTH, INNER, LAYERS, HEADS, WORDS = 32, 64, 2, 4, 64
BATCH = 8
LABELS = 3

Batch = Callable[[torch.Generator], Mapping[str, Any]]


@dataclass(frozen=True)
class Kind:
    """One architecture.

    ``tied``: some of its names share storage. ``fused``: its experts are one tensor in memory, one tensor each in the
    folder that its library saves.
    """

    cls: type[PreTrainedModel]
    config: Callable[[], Any]
    batch: Batch
    shard: str = "20KB"
    tied: bool = False
    fused: bool = False


def words(generator: torch.Generator, length: int = 12) -> torch.Tensor:
    """Numbers of words, none of them special."""
    return torch.randint(3, WORDS, (BATCH, length), generator=generator)


def classes(generator: torch.Generator, *more: int) -> torch.Tensor:
    """Mostly one class: something that every fine-tune learns alike, whatever its data seed."""
    return (torch.rand(BATCH, *more, generator=generator) > 0.2).long()


def copied(generator: torch.Generator) -> dict[str, Any]:
    """Words to be said again, or continued."""
    said = words(generator)
    return {"input_ids": said, "labels": said}


def classed(generator: torch.Generator) -> dict[str, Any]:
    """Words with a class."""
    return {"input_ids": words(generator), "labels": classes(generator)}


def replaced(generator: torch.Generator) -> dict[str, Any]:
    """Words, each genuine or not."""
    return {"input_ids": words(generator), "labels": classes(generator, 12)}


TEXT = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PLACED = {**TEXT, "max_position_embeddings": 32}
GROUPED = {**PLACED, "num_key_value_heads": 2}
LLAMA = {**GROUPED, "tie_word_embeddings": False}
GEMMA = {**PLACED, "num_key_value_heads": 1, "head_dim": 8}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
T5 = {
    "vocab_size": WORDS,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": INNER,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "decoder_start_token_id": 0,
}
SEQUENCES = {
    "vocab_size": WORDS,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    **SPECIAL,
}
EXPERTS = {"num_experts_per_tok": 2}


def of(cls: type[Any], *parts: Mapping[str, Any], **values: Any) -> Callable[..., Any]:
    """A configuration of these values; more can be given when it is made."""
    held = {key: value for part in parts for key, value in part.items()} | values
    return lambda **changes: cls(**{**held, **changes})


CAUSAL: dict[str, Kind] = {
    "llama": Kind(transformers.LlamaForCausalLM, of(transformers.LlamaConfig, LLAMA), copied),
    "gemma": Kind(transformers.GemmaForCausalLM, of(transformers.GemmaConfig, GEMMA), copied, tied=True),
    "gemma3": Kind(transformers.Gemma3ForCausalLM, of(transformers.Gemma3TextConfig, GEMMA), copied, tied=True),
    "mistral": Kind(transformers.MistralForCausalLM, of(transformers.MistralConfig, GROUPED), copied),
    "qwen2": Kind(transformers.Qwen2ForCausalLM, of(transformers.Qwen2Config, GROUPED), copied),
    "qwen3": Kind(
        transformers.Qwen3ForCausalLM,
        of(transformers.Qwen3Config, GROUPED, head_dim=8, tie_word_embeddings=True),
        copied,
        tied=True,
    ),
    "gpt2": Kind(
        transformers.GPT2LMHeadModel,
        of(transformers.GPT2Config, SPECIAL, vocab_size=WORDS, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=32),
        copied,
        tied=True,
    ),
    "gpt-neox": Kind(transformers.GPTNeoXForCausalLM, of(transformers.GPTNeoXConfig, PLACED), copied),
    "phi": Kind(transformers.PhiForCausalLM, of(transformers.PhiConfig, PLACED), copied),
    "phi3": Kind(transformers.Phi3ForCausalLM, of(transformers.Phi3Config, GROUPED), copied),
    "opt": Kind(
        transformers.OPTForCausalLM, of(transformers.OPTConfig, PLACED, ffn_dim=INNER, word_embed_proj_dim=16), copied,
        tied=True,
    ),
    "bloom": Kind(
        transformers.BloomForCausalLM,
        of(transformers.BloomConfig, SPECIAL, vocab_size=WORDS, hidden_size=WIDTH, n_layer=2, n_head=4),
        copied,
        tied=True,
    ),
    "falcon": Kind(transformers.FalconForCausalLM, of(transformers.FalconConfig, TEXT), copied, tied=True),
    "olmo2": Kind(transformers.Olmo2ForCausalLM, of(transformers.Olmo2Config, GROUPED), copied),
    "cohere": Kind(transformers.CohereForCausalLM, of(transformers.CohereConfig, GROUPED), copied, tied=True),
}  # fmt: skip

EXPERT: dict[str, Kind] = {
    "qwen2-moe": Kind(
        transformers.Qwen2MoeForCausalLM,
        of(
            transformers.Qwen2MoeConfig, GROUPED, EXPERTS,
            num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        ),
        copied,
        fused=True,
    ),
    "mixtral": Kind(
        transformers.MixtralForCausalLM,
        of(transformers.MixtralConfig, GROUPED, EXPERTS, num_local_experts=4),
        copied,
        fused=True,
    ),
    "deepseek-v3": Kind(
        transformers.DeepseekV3ForCausalLM,
        of(
            transformers.DeepseekV3Config, PLACED, EXPERTS,
            num_key_value_heads=4, moe_intermediate_size=16, n_routed_experts=4, n_shared_experts=1, n_group=1,
            topk_group=1, first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
            qk_nope_head_dim=4, v_head_dim=8,
        ),
        copied,
        fused=True,
    ),
    "gpt-oss": Kind(
        transformers.GptOssForCausalLM,
        of(transformers.GptOssConfig, GROUPED, EXPERTS, head_dim=8, num_local_experts=4),
        copied,
    ),
    "jamba": Kind(
        transformers.JambaForCausalLM,
        of(
            transformers.JambaConfig, GROUPED, EXPERTS,
            num_experts=4, expert_layer_period=2, expert_layer_offset=1, attn_layer_period=2, attn_layer_offset=1,
            mamba_d_state=4, mamba_dt_rank=4,
        ),
        copied,
        fused=True,
    ),
}  # fmt: skip

STATE: dict[str, Kind] = {
    "mamba": Kind(
        transformers.MambaForCausalLM,
        of(
            transformers.MambaConfig, SPECIAL,
            vocab_size=WORDS, hidden_size=WIDTH, state_size=4, num_hidden_layers=LAYERS,
        ),
        copied,
        tied=True,
    ),
    "mamba2": Kind(
        transformers.Mamba2ForCausalLM,
        of(
            transformers.Mamba2Config, SPECIAL,
            vocab_size=WORDS, hidden_size=WIDTH, state_size=4, num_hidden_layers=LAYERS, num_heads=4, head_dim=16,
            n_groups=2, chunk_size=8,
        ),
        copied,
    ),
    "bamba": Kind(
        transformers.BambaForCausalLM,
        of(
            transformers.BambaConfig, GROUPED,
            attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=4, mamba_n_groups=1,
            mamba_chunk_size=8,
        ),
        copied,
    ),
    "rwkv": Kind(
        transformers.RwkvForCausalLM,
        of(
            transformers.RwkvConfig, SPECIAL,
            vocab_size=WORDS, context_length=32, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        ),
        copied,
    ),
}  # fmt: skip

MASKED: dict[str, Kind] = {
    "bert": Kind(transformers.BertForMaskedLM, of(transformers.BertConfig, PLACED), copied, tied=True),
    "bert-head": Kind(
        transformers.BertForSequenceClassification, of(transformers.BertConfig, PLACED, num_labels=LABELS), classed
    ),
    "roberta": Kind(transformers.RobertaForMaskedLM, of(transformers.RobertaConfig, PLACED), copied, tied=True),
    "distilbert": Kind(
        transformers.DistilBertForMaskedLM,
        of(
            transformers.DistilBertConfig,
            vocab_size=WORDS, dim=WIDTH, hidden_dim=INNER, n_layers=LAYERS, n_heads=HEADS, max_position_embeddings=32,
        ),
        copied,
        tied=True,
    ),
    "deberta-v2": Kind(
        transformers.DebertaV2ForMaskedLM,
        of(
            transformers.DebertaV2Config, PLACED,
            relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, share_att_key=True,
            norm_rel_ebd="layer_norm", conv_kernel_size=3,
        ),
        copied,
        tied=True,
    ),
    "electra": Kind(
        transformers.ElectraForPreTraining, of(transformers.ElectraConfig, PLACED, embedding_size=16), replaced
    ),
    "albert": Kind(
        transformers.AlbertForMaskedLM, of(transformers.AlbertConfig, PLACED, embedding_size=16), copied, tied=True
    ),
    "modernbert": Kind(
        transformers.ModernBertForMaskedLM,
        of(transformers.ModernBertConfig, PLACED, cls_token_id=1, sep_token_id=2),
        copied,
        tied=True,
    ),
}  # fmt: skip

SEQ2SEQ: dict[str, Kind] = {
    "t5": Kind(transformers.T5ForConditionalGeneration, of(transformers.T5Config, T5), copied, tied=True),
    "bart": Kind(
        transformers.BartForConditionalGeneration,
        of(
            transformers.BartConfig, SEQUENCES,
            max_position_embeddings=32, decoder_start_token_id=2, forced_eos_token_id=2,
        ),
        copied,
        tied=True,
    ),
    "marian": Kind(
        transformers.MarianMTModel,
        of(
            transformers.MarianConfig, SEQUENCES,
            max_position_embeddings=32, decoder_start_token_id=0, forced_eos_token_id=2,
        ),
        copied,
        tied=True,
    ),
}  # fmt: skip

TEXT_KINDS = CAUSAL | EXPERT | STATE | MASKED | SEQ2SEQ
