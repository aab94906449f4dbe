"""What a learned soup needs of a task: batches, and logits that can be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from stockpot.evaluate import _transformers as hf
from stockpot.evaluate._base import Options
from stockpot.evaluate._images import ImageEvaluator
from stockpot.evaluate._text import TextEvaluator

BATCH = 32


@dataclass(frozen=True)
class OwnLearner:
    """Two functions of the user's: ``batches(epoch)`` and ``logits(weights, inputs)``."""

    own_batches: Callable[[int], Iterable[tuple[Any, Tensor]]]
    own_logits: Callable[[Mapping[str, Tensor], Any], Tensor]
    content: Mapping[str, Any] | None = None

    def batches(self, epoch: int, folder: Path | None) -> Iterable[tuple[Any, Tensor]]:
        return self.own_batches(epoch)

    def logits(self, weights: Mapping[str, Tensor], inputs: Any, folder: Path | None) -> Tensor:
        return self.own_logits(weights, inputs)


class BuiltInLearner:
    """A classifier of transformers on ``images:FOLDER`` or ``text:FILE``; the seed draws the order of each epoch."""

    def __init__(self, evaluator: ImageEvaluator | TextEvaluator, options: Options) -> None:
        self._evaluator = evaluator
        self._options = options
        self._net: Any = None
        self._names: dict[str, str] = {}

    @property
    def content(self) -> Mapping[str, Any] | None:
        """That of the evaluator, with what orders and sizes the batches."""
        seed, batch = self._options.seed or 0, self._options.batch
        return {**self._evaluator.content, "seed": seed, "batch": batch or BATCH}

    def batches(self, epoch: int, folder: Path | None) -> Iterable[tuple[Any, Tensor]]:
        """Numbers of examples, and their labels as the model's config numbers them."""
        labels = self._evaluator.labels(hf.config_of(folder, self._evaluator.name))
        drawn = torch.Generator().manual_seed((self._options.seed or 0) * 1_000_003 + epoch)
        for own in torch.randperm(self._evaluator.count, generator=drawn).split(self._options.batch or BATCH):
            yield own, labels[own]

    def logits(self, weights: Mapping[str, Tensor], inputs: Any, folder: Path | None) -> Tensor:
        net = self._model(weights, folder)
        assert folder is not None
        given = {name: weights[own] for name, own in self._names.items()}
        arguments = self._evaluator.inputs(inputs.tolist(), folder)
        device = self._options.device or "cpu"
        found = functional_call(net, given, kwargs={name: one.to(device) for name, one in arguments.items()}).logits
        assert isinstance(found, Tensor)
        return found

    def _model(self, weights: Mapping[str, Tensor], folder: Path | None) -> Any:
        """Built once; its parameters are those in ``weights``, told by where they lie."""
        if self._net is None:
            config = hf.config_of(folder, self._evaluator.name)
            plain = {name: tensor.detach() for name, tensor in weights.items()}
            net = hf.model_of(config, plain, self._evaluator.endings, self._evaluator.name)
            self._names = hf.checkpoint_names(net, plain, "give --learn with functions of your own")
            for module in net.modules():  # every call brings its own: none are held here
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        module._parameters[name] = torch.nn.Parameter(parameter.to("meta"))
            self._net = net
        return self._net
