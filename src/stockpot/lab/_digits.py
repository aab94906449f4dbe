"""Handwritten digits: the data, who sees which of it, and the shifts under which models are tested."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from stockpot.errors import MissingExtraError, ParameterError
from stockpot.lab._random import stream, uniform

SIDE = 8
INK = 16.0  # the value of a pixel full of ink
TEST_COUNT = 1_000
_SPLIT_KEY = 2403_19522  # who is tested does not depend on a run's seed: the test digits are the same for ever


@dataclass(frozen=True)
class Examples:
    """Pictures with what they show."""

    images: Tensor  # float32 [count, 1, 8, 8], values 0 .. 16
    labels: Tensor  # int64 [count]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Examples:
        """The examples at these positions."""
        return Examples(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Split:
    """Digits to fine-tune on, digits set aside for the development of the demo, digits to test on: disjoint."""

    train: Examples
    spare: Examples
    test: Examples


def load_digits() -> Examples:
    """The 1,797 handwritten digits that scikit-learn ships (UCI's optical recognition set, its test part).

    Raises ``MissingExtraError`` where scikit-learn is not installed.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "demo") from error
    images, labels = datasets.load_digits(return_X_y=True)
    pictures = torch.from_numpy(images).to(torch.float32).reshape(-1, 1, SIDE, SIDE)
    return Examples(pictures, torch.from_numpy(labels).to(torch.int64))


def split(digits: Examples, *, train_count: int, seed: int) -> Split:
    """Set ``TEST_COUNT`` digits apart, always the same, and draw the training digits from the others.

    The training digits are drawn evenly, ````train_count / 10```` of each class: at least ten and at most 500, in tens.
    """
    if train_count % 10 or not 10 <= train_count <= 500:
        raise ParameterError("training digits", expected="10 to 500, in tens", got=train_count)
    order = torch.randperm(len(digits), generator=stream(_SPLIT_KEY, "split"))
    test, pool = order[:TEST_COUNT], order[TEST_COUNT:]
    pool = pool[torch.randperm(len(pool), generator=stream(seed, "training digits"))]
    labels = digits.labels[pool]
    chosen = torch.zeros(len(pool), dtype=torch.bool)
    for digit in range(10):
        chosen[torch.nonzero(labels == digit)[: train_count // 10, 0]] = True
    return Split(train=digits.take(pool[chosen]), spare=digits.take(pool[~chosen]), test=digits.take(test))


def warped(images: Tensor, theta: Tensor) -> Tensor:
    """Pictures under an affine map each, theta [count, 2, 3] from the output's [-1, 1] square to the input's."""
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def jittered(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures turned, slanted, scaled and moved a little, for training."""
    count = len(images)
    turn = uniform(-0.15, 0.15, (count,), generator)
    slant = uniform(-0.15, 0.15, (count,), generator)
    scale = uniform(0.9, 1.15, (count,), generator)
    moves = uniform(-0.15, 0.15, (count, 2), generator)
    rows = [scale * turn.cos(), slant - turn.sin(), moves[:, 0], turn.sin(), scale * turn.cos(), moves[:, 1]]
    return warped(images, torch.stack(rows, 1).reshape(-1, 2, 3))


def blurred(images: Tensor) -> Tensor:
    """Pictures under a binomial filter of 3 x 3."""
    line = torch.tensor([1.0, 2.0, 1.0]) / 4
    return F.conv2d(images, torch.outer(line, line).reshape(1, 1, 3, 3), padding=1)


def _turned(images: Tensor, generator: torch.Generator) -> Tensor:
    angle = math.radians(25) * _signs(len(images), generator)
    zero = torch.zeros_like(angle)
    rows = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero]
    return warped(images, torch.stack(rows, 1).reshape(-1, 2, 3))


def _sheared(images: Tensor, generator: torch.Generator) -> Tensor:
    slant = 0.5 * _signs(len(images), generator)
    zero, one = torch.zeros_like(slant), torch.ones_like(slant)
    return warped(images, torch.stack([one, slant, zero, zero, one, zero], 1).reshape(-1, 2, 3))


def _noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    return (images + 0.25 * INK * torch.randn(images.shape, generator=generator)).clamp(0, INK)


def _blurred(images: Tensor, _generator: torch.Generator) -> Tensor:
    return blurred(images)


def _faded(images: Tensor, _generator: torch.Generator) -> Tensor:
    return 0.35 * images + 0.3 * INK


def _covered(images: Tensor, generator: torch.Generator) -> Tensor:
    size = 3
    corners = torch.randint(SIDE - size + 1, (len(images), 2, 1), generator=generator)
    places = torch.arange(SIDE)
    inside = (places >= corners) & (places < corners + size)
    patch = inside[:, 0, :, None] & inside[:, 1, None, :]
    return images.masked_fill(patch.unsqueeze(1), 0.0)


def _signs(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (count,), generator=generator) * 2.0 - 1.0


SHIFTS: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = MappingProxyType(
    {
        "rotation": _turned,
        "shear": _sheared,
        "noise": _noisy,
        "blur": _blurred,
        "contrast": _faded,
        "occlusion": _covered,
    }
)
"""What may happen to a test picture that did not happen to a training picture, by name."""


def shifted(examples: Examples, *, seed: int) -> dict[str, Examples]:
    """The same examples under each of the ``SHIFTS``, values still 0 .. 16."""
    return {
        name: Examples(shift(examples.images, stream(seed, "shift", name)), examples.labels)
        for name, shift in SHIFTS.items()
    }
