"""The names of a CLIP's tensors in the forms that checkpoints have, and the way from one to another, exactly.

- ``transformers``: a CLIPModel (``vision_model...``), a folder as transformers writes it.
- ``open_clip``: the whole CLIP as OpenAI and open_clip name it (``visual...``, ``transformer...``).
- ``wrapped``: the same inside the fine-tuning code of Model Soups (``model.visual...``) with a linear classifier on
  normalised features. Its text tower is no longer whole, and is not read.

Any of them may have a classifier: ``classification_head.weight``, ``classification_head.bias``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stockpot import errors

Form = Literal["transformers", "open_clip", "wrapped"]
HEAD_WEIGHT, HEAD_BIAS = "classification_head.weight", "classification_head.bias"
VISION = r"^(model\.)?visual\.|^vision_model\.|^visual_projection\.|^classification_head\."
"""All that takes part where there is a classifier."""
WRAPPER = "model."
_MARKS: Mapping[Form, str] = {
    "wrapped": "model.visual.conv1.weight",
    "open_clip": "visual.conv1.weight",
    "transformers": "vision_model.embeddings.patch_embedding.weight",
}
_WHOLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = ("visual.proj", "text_projection")
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_TOWERS = {"visual.transformer.resblocks": "vision_model.encoder.layers",
           "transformer.resblocks": "text_model.encoder.layers"}  # fmt: skip
_BLOCK = re.compile(r"(.+\.(?:resblocks|layers))\.(\d+)\.(.+)")
_NO_WEIGHTS = re.compile(r"(vision|text)_model\.embeddings\.position_ids|attn_mask")


@dataclass(frozen=True)
class Shape:
    """How a checkpoint names its tensors, and whether a classifier is among them."""

    form: Form
    has_head: bool

    def __str__(self) -> str:
        return f"{self.form} names, {'with' if self.has_head else 'without'} a classifier"


def shape_of(names: Iterable[str], file: str) -> Shape:
    """By its names; CheckpointError where it is no CLIP that is known here."""
    known = set(names)
    form = next((form for form, mark in _MARKS.items() if mark in known), None)
    has_head = HEAD_WEIGHT in known
    if form is None or (form == "wrapped" and not has_head):
        lacking = " or ".join(_MARKS.values()) if form is None else HEAD_WEIGHT
        raise errors.CheckpointError(
            "no CLIP whose names are known here", file=file, expected=lacking,
            got=", ".join(sorted(known)[:3]), remedy="see docs/clip.md for the forms",
        )  # fmt: skip
    return Shape(form, has_head)


def to_transformers(weights: Mapping[str, Tensor], shape: Shape, file: str) -> dict[str, Tensor]:
    """The same tensors by the names of transformers, the classifier under its own; views, no copies.

    Of a wrapped model the visual tower and the classifier.
    """
    found: dict[str, Tensor] = {}
    prefix = WRAPPER if shape.form == "wrapped" else ""
    for full, tensor in weights.items():
        if full in (HEAD_WEIGHT, HEAD_BIAS):
            found[full] = tensor
            continue
        name = full.removeprefix(prefix)
        if _NO_WEIGHTS.fullmatch(name) or (prefix and not name.startswith("visual.")):
            continue
        if shape.form == "transformers":
            found[name] = tensor
            continue
        made = _one_to_transformers(name, tensor)
        if made is None:
            raise errors.CheckpointError("a tensor that CLIP does not have", tensor=full, file=file)
        found.update(made)
    return found


def _one_to_transformers(name: str, tensor: Tensor) -> dict[str, Tensor] | None:
    if name in _WHOLE:
        return {_WHOLE[name]: tensor.T if name in _TRANSPOSED else tensor}
    match = _BLOCK.fullmatch(name)
    if match is None or match[1] not in _TOWERS:
        return None
    stem = f"{_TOWERS[match[1]]}.{match[2]}"
    if match[3] in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = match[3].rpartition("_")[2]
        return {
            f"{stem}.self_attn.{letter}_proj.{kind}": own for letter, own in zip("qkv", tensor.chunk(3), strict=True)
        }
    module, _, kind = match[3].rpartition(".")
    return {f"{stem}.{_IN_BLOCK[module]}.{kind}": tensor} if module in _IN_BLOCK else None


def from_transformers(weights: Mapping[str, Tensor], form: Form) -> dict[str, Tensor]:
    """The inverse: tensors by the names of transformers in another form; q, k and v joined, all of them dense."""
    if form == "transformers":
        return dict(weights)
    whole = {new: old for old, new in _WHOLE.items()}
    towers = {new: old for old, new in _TOWERS.items()}
    in_block = {new: old for old, new in _IN_BLOCK.items()}
    prefix = WRAPPER if form == "wrapped" else ""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name in (HEAD_WEIGHT, HEAD_BIAS):
            found[name] = tensor
        elif name in whole:
            old = whole[name]
            found[prefix + old] = tensor.T.contiguous() if old in _TRANSPOSED else tensor
        elif match := _BLOCK.fullmatch(name):
            stem, (module, _, kind) = f"{prefix}{towers[match[1]]}.{match[2]}", match[3].rpartition(".")
            if module in in_block:
                found[f"{stem}.{in_block[module]}.{kind}"] = tensor
            elif module == "self_attn.q_proj":
                parts = [weights[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
                found[f"{stem}.attn.in_proj_{kind}"] = torch.cat(parts)
    return found
