"""What sort of tensor it is, from its name and shape: weight, bias, norm, embedding, head, other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from stockpot import errors

Kind = Literal["weight", "bias", "norm", "embedding", "head", "other"]
KINDS: tuple[str, ...] = get_args(Kind)

_NORM = re.compile(
    r"(^|[._])(layer_?norm|norm|ln|bn|rms_?norm|group_?norm|batch_?norm|q_norm|k_norm)[^.]*(\.|$)|_layernorm|layer_norm|"
    r"(^|\.)ln_[^.]*\.|(^|\.)(norm|ln|bn)\d*\.|_norm\d*\.|\.g$",
    re.IGNORECASE,
)
_EMBEDDING = re.compile(
    r"embed|(^|\.)(wte|wpe|shared|cls_token|mask_token|pos_emb|class_token|token_type|relative_attention_bias)",
    re.IGNORECASE,
)
_HEAD = re.compile(
    r"(^|\.)(lm_head|head|heads|classifier|fc|score|classification_head|cls\.predictions|visual_projection|"
    r"text_projection|output_projection|qa_outputs|pooler)(\.|$)",
    re.IGNORECASE,
)


def kind_of(name: str, shape: Sequence[int], overrides: Mapping[str, str] | None = None) -> str:
    """The kind of a tensor, by the names of the common families; ``overrides``: regex -> kind, asked first.

    >>> kind_of("encoder.layer.3.attention.self.query.weight", (768, 768))
    'weight'
    >>> kind_of("encoder.layer.3.output.LayerNorm.weight", (768,)), kind_of("ln_f.bias", (768,))
    ('norm', 'norm')
    >>> kind_of("x.gamma", (8,), {"gamma$": "norm"})
    'norm'
    """
    for pattern, kind in (overrides or {}).items():
        if kind not in KINDS:
            raise errors.unknown_name("kind", kind, KINDS)
        if re.search(pattern, name):
            return kind
    if _NORM.search(name):
        return "norm"
    if _EMBEDDING.search(name):
        return "embedding"
    if name.endswith("bias") or (len(shape) == 1 and name.endswith(("_b", ".b"))):
        return "bias"
    if _HEAD.search(name):
        return "head"
    if len(shape) >= 2:
        return "weight"
    return "weight" if name.endswith("weight") else "other"
