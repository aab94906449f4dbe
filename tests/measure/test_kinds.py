"""Kinds of tensors, by the names that the common families give."""

from __future__ import annotations

import pytest

from stockpot import errors
from stockpot.measure import KINDS, kind_of

NAMES = {
    "weight": [
        "model.layers.0.self_attn.q_proj.weight", "encoder.layer.3.attention.self.query.weight",
        "h.0.attn.c_attn.weight", "visual.transformer.resblocks.0.mlp.c_fc.weight", "layer1.0.conv1.weight",
        "encoder.block.0.layer.0.SelfAttention.q.weight", "blocks.3.attn.qkv.weight",
        "model.layers.1.mlp.experts.7.down_proj.weight",
    ],
    "bias": ["encoder.layer.3.attention.self.query.bias", "h.0.attn.c_attn.bias", "blocks.3.attn.qkv.bias"],
    "norm": [
        "model.layers.0.input_layernorm.weight", "model.norm.weight", "encoder.layer.3.output.LayerNorm.bias",
        "ln_f.weight", "h.0.ln_1.bias", "visual.ln_pre.weight", "layer1.0.bn2.weight",
        "encoder.block.0.layer.0.layer_norm.weight",
        "blocks.3.norm1.weight", "model.layers.0.self_attn.q_norm.weight", "encoder.final_layer_norm.weight",
    ],
    "embedding": [
        "model.embed_tokens.weight", "embeddings.word_embeddings.weight", "wte.weight", "wpe.weight", "shared.weight",
        "cls_token", "pos_embed", "visual.positional_embedding", "patch_embed.proj.weight",
    ],
    "head": [
        "lm_head.weight", "classifier.weight", "head.weight", "fc.weight", "score.weight", "visual_projection.weight",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_common_names(kind: str, name: str) -> None:
    """Llama, BERT, GPT-2, CLIP, ResNet, T5, timm's ViT and mixtures of experts."""
    shape = (4,) if kind in ("bias", "norm") or name == "cls_token" else (4, 4)
    assert kind_of(name, shape) == kind


def test_ones_own_come_first() -> None:
    """The first pattern that matches decides; a kind that there is not offers the nearest."""
    assert kind_of("a.weight", (2, 2), {"^a": "head", "weight": "bias"}) == "head"
    assert kind_of("b.logit_scale", ()) == "other"
    with pytest.raises(errors.StockpotError, match="norm"):
        kind_of("a.weight", (2, 2), {"a": "nrm"})
    assert KINDS == ("weight", "bias", "norm", "embedding", "head", "other")
