"""A classifier made of texts: the zero-shot head of a CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def zero_shot_head(net: Any, tokenizer: Any, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One row a class, times exp(logit_scale): the mean over templates of normalised texts, normalised again.

    Arguments: ``net``, a CLIP of transformers; ``templates``, texts with {} for the class. Returns float32 of shape
    ``(classes, features)``. Reference: Radford et al., arXiv 2103.00020, section 3.1.4.
    """
    rows = []
    for name in classes:
        texts = [template.replace("{}", name) for template in templates]
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(net.device)
        embedded = F.normalize(embedding(net.get_text_features(**tokens)).float(), dim=-1).mean(dim=0)
        rows.append(F.normalize(embedded, dim=-1))
    head: Tensor = torch.stack(rows) * net.logit_scale.exp().float()
    return head


def embedding(found: Any) -> Tensor:
    """Embeddings, which newer versions of the library wrap."""
    embedded = found if isinstance(found, Tensor) else found.pooler_output
    assert isinstance(embedded, Tensor)
    return embedded
