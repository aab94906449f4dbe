"""Gram matrices of what linear layers are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stockpot.collect._examples import Examples, batches
from stockpot.collect._fisher import Progress, placed

TRANSPOSED = "Conv1D"
"""A linear layer of transformers whose weight lies with its inputs first."""


@dataclass(frozen=True)
class Inputs:
    """By parameter: ``grams``, X^T X in float64, ``(inputs, inputs)``; ``rows`` of X; which weights lie ``transposed``
    (inputs first); ``left_out``, every other parameter of two dimensions or more, and why.
    """

    grams: Mapping[str, Tensor]
    rows: Mapping[str, int]
    transposed: tuple[str, ...]
    left_out: Mapping[str, str]


@dataclass
class _Sums:
    """What passes through one weight, added up."""

    gram: Tensor
    rows: int = 0
    transposed: bool = False
    hooks: list[Any] = field(default_factory=list)

    def add(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook before the layer's own work."""
        given = args[0] if args else next(iter(kwargs.values()))
        flat = given.detach().reshape(-1, given.shape[-1]).double()
        self.gram += flat.T @ flat
        self.rows += len(flat)


def layer_inputs(net: Any, examples: Examples, *, batch: int = 8, progress: Progress | None = None) -> Inputs:
    """G = sum_x x x^T over all that a linear layer is given, for each ``nn.Linear`` and transposed ``Conv1D``.

    Arguments: ``net``, a model of transformers in evaluation mode; ``batch``: examples worked on together. Nothing is
    padded, so that every row is one of the data. Layers that share a weight share a sum; a weight that is an embedding
    too has none. Returns sums, not means: they pool over data by adding. Cost: the model, its activations, and 8 bytes
    x inputs^2 for each layer. Reference: Jin et al., RegMean, arXiv 2212.09849, section 4.
    """
    sums, left_out = _watched(net)
    done, count = 0, len(examples.lengths)
    try:
        with torch.inference_mode():
            for numbers in batches(examples.lengths, batch):
                net(**placed(examples.inputs(numbers), net))
                done += len(numbers)
                if progress is not None:
                    progress(done, count)
    finally:
        for one in sums.values():
            for hook in one.hooks:
                hook.remove()
    used = {name: one for name, one in sums.items() if one.rows}
    left_out |= {name: "a linear layer that the data do not pass as one" for name in sums if name not in used}
    return Inputs(
        {name: one.gram.cpu() for name, one in used.items()},
        {name: one.rows for name, one in used.items()},
        tuple(name for name, one in used.items() if one.transposed),
        dict(sorted(left_out.items())),
    )


def _watched(net: Any) -> tuple[dict[str, _Sums], dict[str, str]]:
    """Sums that grow as the model is used, by the name of the weight; and the parameters that have none."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    sums: dict[str, _Sums] = {}
    why = {name: "not a linear layer's weight" for name, one in net.named_parameters() if one.dim() > 1}
    for kind, words in ((nn.modules.conv._ConvNd, "a convolution's"), (nn.Embedding, "an embedding's")):
        for module in net.modules():
            if isinstance(module, kind):
                why[names[id(module.weight)]] = words
    for module in net.modules():
        transposed = type(module).__name__ == TRANSPOSED
        if not (transposed or isinstance(module, nn.Linear)):
            continue
        name = names[id(module.weight)]
        if why.get(name) == "an embedding's":
            why[name] = "tied to an embedding"
            continue
        why.pop(name, None)
        if name not in sums:
            size = module.weight.shape[0 if transposed else 1]
            gram = torch.zeros(size, size, dtype=torch.float64, device=module.weight.device)
            sums[name] = _Sums(gram, transposed=transposed)
        sums[name].hooks.append(module.register_forward_pre_hook(sums[name].add, with_kwargs=True))
    return sums, why
