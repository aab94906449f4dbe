"""Groups are solved together where they are small: the answer for each must not show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from stockpot.methods import get_method

ASKED: list[tuple[str, Mapping[str, Any], range]] = [
    ("model_stock", {}, range(2, 21)),
    ("model_stock", {"negative": "allow"}, range(2, 21)),
    ("model_stock", {"norms": "free"}, range(2, 21)),
    ("slerp", {"t": 0.3}, range(1, 2)),
]


@pytest.mark.parametrize(("name", "parameters", "counts"), ASKED)
def test_a_stack_gives_the_bits_of_each_alone(name: str, parameters: Mapping[str, Any], counts: range) -> None:
    """Any number of models, stacks of 1 to 40: weights, ratio and flags are those of each matrix alone, bit by bit."""
    method = get_method(name)
    generator = np.random.default_rng(7)
    for models in counts:
        size = models + 1
        for stack in (1, 2, 40):
            vectors = generator.normal(size=(stack, size, 50)) + 0.7
            grams = vectors @ vectors.transpose(0, 2, 1)
            together = method(grams, parameters)
            for number, gram in enumerate(grams):
                alone = method(gram, parameters)
                for part in ("weights", "ratio", "clamped", "fallback"):
                    whole, one = getattr(together, part), getattr(alone, part)
                    assert (whole is None) == (one is None)
                    if whole is not None:
                        assert np.asarray(whole[number]).tobytes() == np.asarray(one).tobytes(), (models, stack, part)
