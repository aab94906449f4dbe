"""What models answer on the digits that they are tested on, and on those that choices are made by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stockpot.lab._digits import Split, shifted
from stockpot.lab._glyphs import HELD_OUT_FONTS, load_glyphs, render
from stockpot.lab._network import Weights, judged
from stockpot.lab._networks import Network
from stockpot.lab._random import stream

HELD_OUT_DIGITS = 300
"""Of the digits that are neither trained nor tested on: choices are made by these."""
FONTS = "other fonts"


@dataclass(frozen=True)
class Reading:
    """Answers of one model, or means of several: [test, digit], the first test in distribution, the others shifted.

    ``right``: 1 where the answer is; ``loss``: cross-entropy in nats; ``held``: accuracy and loss on held-out digits.
    """

    right: Tensor
    loss: Tensor
    held: tuple[float, float]

    @property
    def held_score(self) -> float:
        """What choices are made by."""
        return held_score(*self.held)

    @property
    def values(self) -> dict[str, float]:
        """Per cent right and mean loss, in distribution and over the shifts."""
        return {
            "accuracy": 100 * float(self.right[0].mean()),
            "loss": float(self.loss[0].mean()),
            "shifted_accuracy": 100 * float(self.right[1:].mean()),
            "shifted_loss": float(self.loss[1:].mean()),
            "held_accuracy": 100 * self.held[0],
            "held_loss": self.held[1],
        }


def held_score(accuracy: float, loss: float) -> float:
    """Accuracy; a hundredth of the loss tells ties apart."""
    return accuracy - 0.01 * loss if math.isfinite(loss) else -math.inf


def mean_of(readings: Sequence[Reading]) -> Reading:
    """Element by element: what one of them, drawn at random, does."""
    held = [sum(one.held[place] for one in readings) / len(readings) for place in (0, 1)]
    return Reading(
        torch.stack([one.right for one in readings]).mean(dim=0),
        torch.stack([one.loss for one in readings]).mean(dim=0),
        (held[0], held[1]),
    )


class Reader:
    """The tests of one repetition; the pictures are made once."""

    def __init__(self, data: Split, network: Network, *, seed: int, digits: int) -> None:
        plain = data.test.take(torch.arange(digits))
        printed = render(load_glyphs(HELD_OUT_FONTS), digits, stream(seed, "shift", FONTS), spoiled=False)
        shifts = {**shifted(plain, seed=seed), FONTS: printed}
        self.shifts = tuple(shifts)
        self.held = data.spare.take(torch.arange(min(HELD_OUT_DIGITS, len(data.spare))))
        self.tests = (plain, *shifts.values())
        self._network = network

    def answers(self, weights: Weights) -> list[Tensor]:
        """Logits for every test, and last for the held-out digits."""
        with torch.no_grad():
            return [self._network.logits(weights, one.images) for one in (*self.tests, self.held)]

    def read(self, weights: Weights) -> Reading:
        """One model."""
        return self.reading(self.answers(weights))

    def together(self, answers: Sequence[list[Tensor]]) -> Reading:
        """An ensemble: the mean of its members' logits."""
        return self.reading([torch.stack(own).mean(dim=0) for own in zip(*answers, strict=True)])

    def reading(self, answers: list[Tensor]) -> Reading:
        """Answers against labels."""
        *tests, held = answers
        found = [judged(own, one) for own, one in zip(tests, self.tests, strict=True)]
        right, loss = judged(held, self.held)
        return Reading(
            torch.stack([one[0] for one in found]),
            torch.stack([one[1] for one in found]),
            (float(right.mean()), float(loss.mean())),
        )

    def held_scores(self, weights: Weights) -> tuple[float, float]:
        """Accuracy and loss on held-out digits alone."""
        with torch.no_grad():
            right, loss = judged(self._network.logits(weights, self.held.images), self.held)
        return float(right.mean()), float(loss.mean())
