"""BatchNorm's running statistics, for weights that no batch has passed through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Any]) -> None:
    """Running means and variances of all BatchNorm layers, as plain averages over these batches.

    Averaged weights shift activations, so that running statistics fit no longer (Izmailov et al. 2018, section 3.2).
    ``batches``: inputs of the model, or tuples and lists that begin with them. Modes and momenta come back even if a
    batch raises. Cost: one forward pass each.
    """
    from torch.optim.swa_utils import update_bn

    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta, mode = [layer.momentum for layer in layers], model.training
    try:
        update_bn(batches, model)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.train(mode)
