"""A small vision transformer on pictures of 8 x 8: patches of 2 x 2, pre-norm blocks, the mean of all tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from stockpot.lab._digits import INK

WIDTH, DEPTH, HEADS, PATCH = 64, 4, 4, 2
TOKENS = (8 // PATCH) ** 2


def initial_weights(generator: torch.Generator) -> dict[str, Tensor]:
    """A fresh network: normal of 0.02 for positions, 1 / sqrt(fan-in) for matrices, zeros and ones elsewhere."""
    weights = {"embedding.position": 0.02 * torch.randn(TOKENS, WIDTH, generator=generator)}

    def linear(name: str, inputs: int, outputs: int) -> None:
        weights[f"{name}.weight"] = torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs)
        weights[f"{name}.bias"] = torch.zeros(outputs)

    def norm(name: str) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.ones(WIDTH), torch.zeros(WIDTH)

    linear("embedding.patch", PATCH * PATCH, WIDTH)
    for block in range(DEPTH):
        norm(f"blocks.{block}.norm1")
        linear(f"blocks.{block}.attention.qkv", WIDTH, 3 * WIDTH)
        linear(f"blocks.{block}.attention.out", WIDTH, WIDTH)
        norm(f"blocks.{block}.norm2")
        linear(f"blocks.{block}.mlp.up", WIDTH, 4 * WIDTH)
        linear(f"blocks.{block}.mlp.down", 4 * WIDTH, WIDTH)
    norm("norm")
    linear("head", WIDTH, 10)
    return weights


def logits(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """The network's answer, [count, 10], to pictures [count, 1, 8, 8] of 0 .. 16."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    patches = F.unfold(images / INK, PATCH, stride=PATCH).transpose(1, 2)
    x = linear("embedding.patch", patches) + weights["embedding.position"]
    for block in range(DEPTH):
        own = f"blocks.{block}"
        parts = linear(f"{own}.attention.qkv", norm(f"{own}.norm1", x)).unflatten(-1, (3, HEADS, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + linear(f"{own}.attention.out", seen)
        x = x + linear(f"{own}.mlp.down", F.gelu(linear(f"{own}.mlp.up", norm(f"{own}.norm2", x))))
    return linear("head", norm("norm", x).mean(dim=1))
