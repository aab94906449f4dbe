"""The networks of the demo by name, and the one that some weights belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stockpot.lab import _network, _vit
from stockpot.lab._network import Training, Weights


@dataclass(frozen=True)
class Network:
    """How it starts, what it answers, how it is pre-trained. ``mark``: a tensor that only this one has."""

    name: str
    mark: str
    initial_weights: Callable[[torch.Generator], Weights]
    logits: Callable[[Weights, Tensor], Tensor]
    pretraining: Training

    def flops(self) -> int:
        """Floating-point operations to read one picture."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.logits(self.initial_weights(torch.Generator().manual_seed(0)), torch.zeros(1, 1, 8, 8))
        return int(counter.get_total_flops())


NETWORKS: Mapping[str, Network] = {
    "conv": Network(
        "conv", "conv0.weight", _network.initial_weights, _network.logits,
        Training(steps=450, batch=128, learning_rate=3e-3),
    ),
    "vit": Network(
        "vit", "embedding.position", _vit.initial_weights, _vit.logits,
        Training(steps=800, batch=128, learning_rate=2e-3),
    ),
}  # fmt: skip


def network_of(weights: Mapping[str, Tensor]) -> Network:
    """By the tensors that are there."""
    return next(one for one in NETWORKS.values() if one.mark in weights)
