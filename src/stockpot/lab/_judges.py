"""The demo's digits as evaluators: ``stockpot.lab:held_out_digits`` to choose by, ``unseen_digits`` to test with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from stockpot.lab._digits import Examples, Split, load_digits, shifted, split
from stockpot.lab._network import judged
from stockpot.lab._networks import network_of

_TRAIN_COUNT = 100
_SEED = 0


def held_out_digits(weights: Mapping[str, Tensor], limit: int | None = None) -> dict[str, Any]:
    """Accuracy and loss on the handwritten digits that the demo neither trains nor tests on; with logits and labels."""
    return _judged(weights, _data().spare, limit)


def unseen_digits(weights: Mapping[str, Tensor], limit: int | None = None) -> dict[str, Any]:
    """The same on the demo's test digits, and as ``shifted`` the mean accuracy over its six shifts."""
    examples = _data().test
    shifts = [_judged(weights, one, limit)["accuracy"] for one in shifted(examples, seed=_SEED).values()]
    return {**_judged(weights, examples, limit), "shifted": sum(shifts) / len(shifts)}


@cache
def _data() -> Split:
    return split(load_digits(), train_count=_TRAIN_COUNT, seed=_SEED)


def _judged(weights: Mapping[str, Tensor], examples: Examples, limit: int | None) -> dict[str, Any]:
    some = examples.take(torch.arange(min(limit or len(examples), len(examples))))
    with torch.no_grad():
        found = network_of(weights).logits(dict(weights), some.images)
    right, loss = judged(found, some)
    return {
        "accuracy": right.mean().item(),
        "loss": loss.mean().item(),
        "logits": found,
        "labels": some.labels,
    }
