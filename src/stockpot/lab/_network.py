"""A small convolutional network as plain tensors by name: start, read, save, load."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from stockpot.lab._digits import INK, Examples

Weights = dict[str, Tensor]
Batches = Iterator[Examples]

KEY = "made_by"
_CONVOLUTIONS = ((1, 32), (32, 48), (48, 96))
_POOLED_AFTER = 1  # 8 x 8 -> 4 x 4
_HIDDEN = 160
_GROUPS = 8


@dataclass(frozen=True)
class Training:
    """How to train: AdamW, a linear warm-up over a tenth of the steps, then half a cosine down to nothing."""

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float = 1e-2


def initial_weights(generator: torch.Generator) -> Weights:
    """A fresh network: He's normal for the matrices, zeros and ones elsewhere."""
    weights: Weights = {}
    for layer, (inputs, outputs) in enumerate(_CONVOLUTIONS):
        weights[f"conv{layer}.weight"] = _he((outputs, inputs, 3, 3), generator)
        weights[f"norm{layer}.weight"] = torch.ones(outputs)
        weights[f"norm{layer}.bias"] = torch.zeros(outputs)
    features = 16 * _CONVOLUTIONS[-1][1]
    for name, (inputs, outputs) in {"hidden": (features, _HIDDEN), "head": (_HIDDEN, 10)}.items():
        weights[f"{name}.weight"] = _he((outputs, inputs), generator)
        weights[f"{name}.bias"] = torch.zeros(outputs)
    return weights


def logits(weights: Weights, images: Tensor) -> Tensor:
    """The network's answer, [count, 10], to pictures [count, 1, 8, 8] of 0 .. 16."""
    x = images / INK
    for layer in range(len(_CONVOLUTIONS)):
        x = F.conv2d(x, weights[f"conv{layer}.weight"], padding=1)
        x = F.relu(F.group_norm(x, _GROUPS, weights[f"norm{layer}.weight"], weights[f"norm{layer}.bias"]))
        if layer == _POOLED_AFTER:
            x = F.max_pool2d(x, 2)
    x = F.relu(F.linear(x.flatten(1), weights["hidden.weight"], weights["hidden.bias"]))
    return F.linear(x, weights["head.weight"], weights["head.bias"])


def schedule(step: int, steps: int) -> float:
    """The share of the learning rate at this step, 0 <= step < steps."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def judged(answers: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
    """Which answers, [count, 10], are right (0 or 1), and their cross-entropies in nats; float64 [count]."""
    right = (answers.argmax(dim=1) == examples.labels).double()
    return right, F.cross_entropy(answers.double(), examples.labels, reduction="none")


def save_checkpoint(weights: Weights, folder: Path, made_by: str = "", network: str = "conv") -> None:
    """Write a folder as other libraries do: ``model.safetensors`` and a small ``config.json``.

    ``made_by``: what tells it from a checkpoint made otherwise, see ``kept_checkpoint``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "stockpot-digits", "network": network, "classes": 10}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    fresh = folder / "model.safetensors.new"
    fresh.write_bytes(save(weights, {KEY: made_by}))
    fresh.replace(folder / "model.safetensors")


def kept_checkpoint(folder: Path, made_by: str) -> Weights | None:
    """The weights there, if an earlier run made them in the same way."""
    path = folder / "model.safetensors"
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            same = (file.metadata() or {}).get(KEY) == made_by
        return load_checkpoint(folder) if same else None
    except SafetensorError:
        return None


def load_checkpoint(folder: Path) -> Weights:
    """The weights in a folder that ``save_checkpoint``, or a merge of such folders, has written."""
    return load_file(folder / "model.safetensors")


def _he(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    fan_in = math.prod(shape[1:])
    return torch.randn(shape, generator=generator) * math.sqrt(2 / fan_in)
