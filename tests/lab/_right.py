"""What a network of the demo reads rightly, for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from stockpot.lab._digits import Examples
from stockpot.lab._network import Weights, judged, logits


def correct(weights: Weights, examples: Examples) -> Tensor:
    """Which of the examples the convolutional network reads rightly: float64 [count], each 0 or 1."""
    with torch.no_grad():
        return judged(logits(weights, examples.images), examples)[0]
