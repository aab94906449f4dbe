"""Diagonal Fisher values: the mean over examples of the squared gradient of the log-likelihood."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from stockpot import errors
from stockpot.collect._examples import Examples, batches

Labels = Literal["sampled", "exact", "given"]
Progress = Callable[[int, int], None]


def diagonal_fisher(
    net: Any,
    examples: Examples,
    *,
    labels: Labels = "sampled",
    samples: int = 1,
    seed: int = 0,
    batch: int = 8,
    progress: Progress | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """F = (1/n) sum_x E_{y ~ p(y|x)} (d log p(y|x) / d w)^2, element by element, for every parameter of the model.

    Arguments: ``net``, a model of transformers in evaluation mode; ``labels``: y drawn from the model's own answers
    (``samples`` of them for each example), the expectation over all classes (``exact``), or the data's own (``given``:
    the empirical Fisher, which is another thing away from the optimum). Of a sequence of tokens y is drawn at each
    place, given the data's words before it, and the gradient is that of the sum. Draws depend on ``seed`` and the
    number of the example alone. ``batch``: examples differentiated together; each keeps a gradient of its own.
    Returns float64 values by parameter, on the CPU, and notes. Cost: the model, 8 bytes a parameter, and a gradient
    for each example of a batch. Reference: Matena and Raffel, arXiv 2111.09832, section 3; Kunstner et al.,
    arXiv 1905.12558, on the empirical Fisher.
    """
    weights = {name: parameter.detach() for name, parameter in net.named_parameters()}
    total = {name: torch.zeros(one.shape, dtype=torch.float64, device=one.device) for name, one in weights.items()}
    gradients = _Gradients(net, weights)
    done, count = 0, len(examples.lengths)
    for numbers in batches(examples.lengths, batch):
        inputs = placed(examples.inputs(numbers), net)
        for answers, shares in _answers(net, inputs, examples, numbers, labels, samples, seed):
            for each, share in gradients(inputs, answers.to(net.device), shares):
                for name, one in each.items():
                    wide = one.double().square().flatten(1)  # gradients may share memory
                    total[name] += (share.to(wide.device) @ wide).view(one.shape[1:])
        done += len(numbers)
        if progress is not None:
            progress(done, count)
    return {name: (values / count).cpu() for name, values in total.items()}, gradients.notes


def placed(inputs: Mapping[str, Tensor], net: Any) -> dict[str, Tensor]:
    """On the model's device, real numbers in its dtype."""
    return {
        name: one.to(net.device, net.dtype if one.is_floating_point() else one.dtype) for name, one in inputs.items()
    }


def _log_likelihoods(net: Any, weights: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
    """log p of every class at every place that is predicted, ``(examples, places, classes)``."""
    logits = functional_call(net, dict(weights), kwargs=dict(inputs)).logits
    assert isinstance(logits, Tensor)
    logits = logits[:, :-1] if logits.dim() == 3 else logits[:, None]
    return logits.double().log_softmax(dim=-1)


class _Gradients:
    """Of each example by itself: all of a batch at once where torch can do that with the model, else one by one."""

    def __init__(self, net: Any, weights: Mapping[str, Tensor]) -> None:
        def likelihood(given: Mapping[str, Tensor], inputs: Mapping[str, Tensor], answers: Tensor) -> Tensor:
            found = _log_likelihoods(net, given, {name: one[None] for name, one in inputs.items()})[0]
            return found.gather(1, answers[:, None]).sum()

        self.notes: list[str] = []
        self._weights = dict(weights)
        self._one = grad(likelihood)
        self._many = vmap(self._one, in_dims=(None, 0, 0))
        self._together = True

    def __call__(
        self, inputs: Mapping[str, Tensor], answers: Tensor, shares: Tensor
    ) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Gradients by parameter, ``(examples, *shape)``, with the examples' shares."""
        if self._together and len(answers) > 1:
            try:
                found = self._many(self._weights, dict(inputs), answers)
            except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
                self._together = False
                why = (str(error).splitlines() or [type(error).__name__])[0]
                self.notes.append(f"examples are differentiated one by one: torch cannot take them together ({why})")
            else:
                yield found, shares
                return
        for number in range(len(answers)):
            one = self._one(self._weights, {name: all_[number] for name, all_ in inputs.items()}, answers[number])
            yield {name: value[None] for name, value in one.items()}, shares[number : number + 1]


def _answers(
    net: Any,
    inputs: Mapping[str, Tensor],
    examples: Examples,
    numbers: list[int],
    labels: Labels,
    samples: int,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Answers ``(examples, places)`` to differentiate, each with the examples' shares in the expectation."""
    if labels == "given":
        yield examples.labels(numbers), torch.ones(len(numbers), dtype=torch.float64)
        return
    with torch.no_grad():
        chances = _log_likelihoods(net, dict(net.named_parameters()), inputs).exp().cpu()
    if not bool(torch.isfinite(chances).all()):
        raise errors.NonFiniteError(
            "the model's answers are not finite", got=f"example {numbers[0]} and those of its batch",
            remedy="check the weights, or choose a wider --dtype",
        )  # fmt: skip
    if labels == "exact":
        for number in range(chances.shape[-1]):
            yield torch.full((len(numbers), 1), number), chances[:, 0, number]
        return
    heaps = chances.numpy().cumsum(axis=-1)
    drawn = np.stack([np.random.default_rng([seed, number]).random((samples, heaps.shape[1])) for number in numbers])
    for place in range(samples):
        levels = drawn[:, place, :, None] * heaps[..., -1:]
        yield torch.from_numpy((heaps <= levels).sum(axis=-1)), torch.full((len(numbers),), 1 / samples).double()
