"""Small models whose scores are known in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

State = Mapping[str, torch.Tensor]
SHAPES = {"layer.0.weight": (6, 5), "layer.0.bias": (5,), "layer.1.weight": (4, 5)}


def flat(state: State) -> np.ndarray:
    """All weights in one float64 vector."""
    return np.concatenate([state[name].double().numpy().ravel() for name in SHAPES])


def state(seed: int, around: State | None = None, spread: float = 1.0) -> dict[str, torch.Tensor]:
    """Weights drawn around others."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}
    return {name: spread * value + (0 if around is None else around[name]) for name, value in drawn.items()}


class Bowl:
    """A loss that is the squared distance from a point; counts how often it was asked."""

    def __init__(self, middle: State) -> None:
        self.middle = flat(middle)
        self.asked = 0

    def __call__(self, weights: State) -> dict[str, float]:
        self.asked += 1
        return {"loss": self.at(flat(weights)), "gain": -self.at(flat(weights))}

    def at(self, point: np.ndarray) -> float:
        return float(((point - self.middle) ** 2).sum())


def double_well(one: State, other: State) -> Callable[[State], float]:
    """An error with a minimum of 0 at both, and a hill of 1 half-way: 16 a^2 (1 - a)^2 along the line."""
    start, step = flat(one), flat(other) - flat(one)

    def error(weights: State) -> float:
        place = float((flat(weights) - start) @ step / (step @ step))
        return 16.0 * place**2 * (1.0 - place) ** 2

    return error
