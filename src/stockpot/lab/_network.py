"""A small convolutional network as plain tensors by name: start, train, read, save, load."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
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


def train(
    start: Weights,
    batches: Batches,
    how: Training,
    after_step: Callable[[int], None] | None = None,
    answer: Callable[[Weights, Tensor], Tensor] = logits,
) -> Weights:
    """New weights, trained from ``start`` on the next ``how.steps`` batches; ``start`` is left as it is.

    Equal arguments give equal weights on one machine: nothing here draws a random number. Calls ``after_step`` with
    the number of steps done. ``answer``: the network.
    """
    weights = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=how.learning_rate, weight_decay=how.weight_decay, fused=True)
    for step in range(how.steps):
        for group in optimizer.param_groups:
            group["lr"] = how.learning_rate * schedule(step, how.steps)
        examples = next(batches)
        loss = F.cross_entropy(answer(weights, examples.images), examples.labels)
        for tensor, gradient in zip(weights.values(), torch.autograd.grad(loss, list(weights.values())), strict=True):
            tensor.grad = gradient
        optimizer.step()
        if after_step is not None:
            after_step(step + 1)
    return {name: tensor.detach() for name, tensor in weights.items()}


def schedule(step: int, steps: int) -> float:
    """The share of the learning rate at this step, 0 <= step < steps."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def correct(weights: Weights, examples: Examples) -> Tensor:
    """Which of the examples the network reads rightly: float64 [count], each 0 or 1."""
    with torch.no_grad():
        answers = logits(weights, examples.images).argmax(1)
    return (answers == examples.labels).to(torch.float64)


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
