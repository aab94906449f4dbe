"""A naive float64 oracle of Model Stock, written from the paper's formula alone; nothing of stockpot is used here.

t = N c / (1 + (N-1) c), c = mean over pairs of cos(d_i, d_j), d_i = w_i - w0, for each tensor;
w_H = w0 + t (mean of w_i - w0). BatchNorm's running statistics are plain means over the models, its counter the first
model's. Rounding to the stored dtype is done here by hand: through float32 it would round twice.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

STATISTICS = ("running_mean", "running_var")
COUNTER = "num_batches_tracked"
_DIGITS = {torch.float32: (24, -149), torch.bfloat16: (8, -133), torch.float16: (11, -24)}
"""Significant bits, and the exponent of the smallest subnormal."""
RATIO_ERROR = {torch.float32: 1e-11, torch.bfloat16: 1e-6, torch.float16: 1e-6}
CANCELLED = 2.0**-12


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder of safetensors files, or of one file, by the format's own library."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
    found: dict[str, torch.Tensor] = {}
    for file in files:
        if file.name == "stockpot_geometry.safetensors":
            continue
        with safe_open(file, "pt") as handle:
            found.update({name: handle.get_tensor(name) for name in handle.keys()})  # noqa: SIM118  # safe_open has keys(), but cannot be iterated
    return found


def wide(tensor: torch.Tensor) -> np.ndarray:
    """The exact values in float64."""
    return tensor.detach().double().numpy()


def ratio(base: torch.Tensor, models: Sequence[torch.Tensor]) -> float:
    """t of one tensor; 0 where the mean cosine is not positive, NaN where nothing moved."""
    deltas = [(wide(model) - wide(base)).ravel() for model in models]
    squares = [math.fsum(delta * delta) for delta in deltas]
    if not any(squares):
        return math.nan
    cosines = []
    for i, j in itertools.combinations(range(len(deltas)), 2):
        product = math.fsum(deltas[i] * deltas[j])
        cosines.append(product / math.sqrt(squares[i] * squares[j]) if squares[i] and squares[j] else 0.0)
    cosine = min(math.fsum(cosines) / len(cosines), 1.0)
    count = len(models)
    return count * cosine / (1 + (count - 1) * cosine) if cosine > 0 else 0.0


def combine(reference: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float]) -> np.ndarray:
    """reference + sum_i weights_i (other_i - reference), in float64."""
    total = wide(reference).copy()
    for other, weight in zip(others, weights, strict=True):
        total += weight * (wide(other) - wide(reference))
    return total


def rounded(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The nearest value of that dtype, ties to even, as float64."""
    digits, least = _DIGITS[dtype]
    quantum = np.exp2(np.maximum(np.frexp(values)[1] - digits, least).astype(np.float64))
    return np.rint(values / quantum) * quantum


def step_at(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The distance between neighbours of that dtype."""
    digits, least = _DIGITS[dtype]
    return np.exp2(np.maximum(np.frexp(values)[1] - digits, least).astype(np.float64))


class Score:
    """Counts elements that are not the correctly rounded value, over all tensors of a merge."""

    def __init__(self) -> None:
        self.elements: dict[torch.dtype, int] = {}
        self.wrong: dict[torch.dtype, int] = {}
        self.far: list[str] = []

    def add(self, name: str, got: torch.Tensor, exact: np.ndarray, inputs: Sequence[torch.Tensor]) -> None:
        """Compare one tensor with its exact value."""
        assert tuple(got.shape) == exact.shape, f"{name}: shape {tuple(got.shape)}, expected {exact.shape}"
        want = rounded(exact, got.dtype)
        largest = np.max([np.abs(wide(one)) for one in inputs], axis=0) if inputs else np.abs(exact)
        # This oracle is float64 itself: next to half-way it cannot tell (tests/numbers does, with fractions).
        position = np.abs(exact) / step_at(exact, got.dtype)
        counted = (np.abs(exact) >= CANCELLED * largest) & (np.abs(position - np.floor(position) - 0.5) > 1e-7)
        wrong = (wide(got) != want) & counted
        self.elements[got.dtype] = self.elements.get(got.dtype, 0) + int(counted.sum())
        self.wrong[got.dtype] = self.wrong.get(got.dtype, 0) + int(wrong.sum())
        off = np.abs(wide(got) - want) > 1.5 * step_at(np.maximum(np.abs(want), np.abs(exact)), got.dtype)
        if (off & counted).any():
            self.far.append(f"{name}: {int((off & counted).sum())} elements are not even the neighbouring value")

    def check(self) -> None:
        """None may be wrong."""
        assert not self.far, self.far
        for dtype, elements in self.elements.items():
            wrong = self.wrong[dtype]
            assert wrong == 0, f"{wrong} of {elements} {dtype} elements are not correctly rounded"


def record_of(out: Path) -> Any:
    """How a merged folder, or one ``.safetensors`` file, says that it was made."""
    if out.is_dir():
        return json.loads((out / "stockpot.json").read_text("utf-8"))
    with safe_open(out, "pt") as handle:
        return json.loads(handle.metadata()["stockpot"])


def check_model_stock(
    out: Path,
    base: Mapping[str, torch.Tensor],
    models: Sequence[Mapping[str, torch.Tensor]],
    part: str = "",
    prefix: str = "",
) -> int:
    """Every tensor of a merged file, folder, or part of a folder against the formula.

    ``prefix``: what names in the output have before those of the inputs. Returns how many ratios lay inside (0, 1).
    """
    groups = record_of(out)["groups"]
    score, inside = Score(), 0
    for stored, got in read(out / part).items():
        name = stored.removeprefix(prefix)
        inputs = [model[name] for model in models]
        last = name.rsplit(".", 1)[-1]
        if not got.is_floating_point():  # counters, and what all models agree on
            assert torch.equal(got, inputs[0]), f"{name}: not the first model's"
            continue
        if last in STATISTICS:
            share = 1.0 / len(inputs)
            score.add(name, got, combine(inputs[0], inputs[1:], [share] * (len(inputs) - 1)), inputs)
            continue
        want = ratio(base[name], inputs)
        group = groups[f"{part}/{stored}" if part else stored]
        if math.isnan(want):
            assert torch.equal(got, base[name]), f"{name}: frozen, but not the base's bytes"
            continue
        narrowest = min((tensor.dtype for tensor in [base[name], *inputs]), key=lambda dtype: dtype.itemsize)
        assert abs(group["ratio"] - want) <= RATIO_ERROR[narrowest], f"{name}: t {group['ratio']!r}, expected {want!r}"
        inside += 0 < want < 1
        # Against exact arithmetic with the recorded coefficients, and these are t/N each.
        steps = group["weights"][1:]
        assert np.allclose(steps, want / len(inputs), rtol=0, atol=RATIO_ERROR[narrowest]), name
        score.add(name, got, combine(base[name], inputs, steps), [base[name], *inputs])
    score.check()
    return inside


def check_linear(out: Path, models: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]) -> None:
    """Every tensor of a merged folder against the weighted mean."""
    score = Score()
    share = [weight / math.fsum(weights) for weight in weights]
    for name, got in read(out).items():
        inputs = [model[name] for model in models]
        if name.endswith(COUNTER):
            assert torch.equal(got, inputs[0]), name
            continue
        plain = name.rsplit(".", 1)[-1] in STATISTICS
        each = [1.0 / len(inputs)] * len(inputs) if plain else share
        score.add(name, got, combine(inputs[0], inputs[1:], each[1:]), inputs)
    score.check()
