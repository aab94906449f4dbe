"""SCE: select, calculate, erase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from stockpot.kernels import Cut, Doubles, Elements, Keyed, Row, Wanted, blocks, kept_count, largest, make_by_blocks
from stockpot.methods._base import elementwise, shares
from stockpot.methods._rule import Form, Rule, Unit


@elementwise(
    base="required",
    models=(1, None),
    reference="Wan et al., FuseChat, arXiv 2408.07990",
    passes=3,
)
def sce(form: Form, *, select_topk: float = 1.0) -> Rule:
    """The base plus task vectors where they differ most, weighted by their squares, by sign consensus.

    Select: of the m elements at which the task vectors d_i = w_i - w0 differ, the round(select_topk m) of largest
    variance over the models are kept, of equal ones the first. Calculate: weight_i = sum d_i^2 / sum_j sum d_j^2 over
    what is kept of the tensor. Erase: at each element the sign of sum_i d_i is elected (zero: positive), and those that
    have it are averaged by these weights: w = w0 + sum weight_i d_i / sum weight_i.

    Arguments: ``select_topk``, share that is kept, 0 to 1 (default 1: every element, also where the models agree).
    Returns the rule. Raises ParameterError for a share outside 0 to 1. Cost: two passes at 1, else about five, in
    numpy. Reference: arXiv 2408.07990, section 3.3.

    >>> import torch, stockpot
    >>> base = {"w": torch.zeros(2)}
    >>> models = [{"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([1.0, -1.0])}]
    >>> stockpot.merge_state_dicts("sce", base=base, models=models)["w"]
    tensor([ 1.6667, -1.0000])
    """
    return _Sce(form, shares("sce", "select_topk", (select_topk,), 1)[0])


class _Measured(NamedTuple):
    """The least variance that is kept, and the weight of each model."""

    cut: Cut | None
    weights: Doubles


@dataclass(frozen=True)
class _Sce:
    form: Form
    share: float
    unit: Unit = "block"

    def measure(self, tensor: Elements, *, pass_nonfinite: bool) -> _Measured:
        """The cut among the variances, then the squares of what is kept."""
        with np.errstate(all="ignore"):  # what is not finite is refused where it is made
            return self._measured(tensor)

    def _measured(self, tensor: Elements) -> _Measured:
        chosen = None
        if self.share < 1.0:
            differing = sum(
                int(np.count_nonzero(_variance(values))) for _, rows in tensor.pieces() for _, values in blocks(rows)
            )
            chosen = largest(Keyed(tensor, _variance), [[Wanted(kept_count(self.share, differing))]])[0][0]
        squares = np.zeros(self.form.models)
        for place, rows in tensor.pieces():
            for start, values in blocks(rows):
                # What is not finite is refused, or passed through: it weighs nothing.
                kept = (np.where(np.isfinite(d), d, 0.0) for d in _kept(values, chosen, place + start))
                squares += [(d * d).sum() for d in kept]
        total = squares.sum()
        return _Measured(chosen, squares / total if total > 0 else squares)

    def make(self, measured: _Measured, place: int, rows: Sequence[Row], out: Row, *, pass_nonfinite: bool) -> None:
        """A piece."""
        made = partial(_made, measured, place)
        make_by_blocks(rows, out, made, pass_nonfinite=pass_nonfinite)

    def facts(self) -> Mapping[str, object]:
        """Nothing: all of it depends on the weights."""
        return {}


def _variance(values: Sequence[Doubles]) -> Doubles:
    """Of the models, times a number: sum_i (N e_i - sum_j e_j)^2, with e_i = w_i - w_1.

    Of 16-bit numbers that is exact as a rule, so that equal variances are equal, and zero is zero.
    """
    _, first, *others = values
    apart = [np.zeros_like(first), *(other - first for other in others)]
    total = sum(apart)
    return np.asarray(sum((len(apart) * one - total) ** 2 for one in apart))


def _kept(values: Sequence[Doubles], chosen: Cut | None, place: int) -> list[Doubles]:
    """Task vectors, zero where they are not selected."""
    base, *models = values
    deltas = [model - base for model in models]
    if chosen is None:
        return deltas
    variance = _variance(values)
    before = np.arange(place, place + base.size) < chosen.until
    stays = ~(variance <= chosen.key) | ((variance == chosen.key) & before)
    return [np.where(stays, delta, 0.0) for delta in deltas]


def _made(measured: _Measured, place: int, start: int, values: Sequence[Doubles]) -> Doubles:
    deltas = _kept(values, measured.cut, place + start)
    sign = np.where(sum(deltas) >= 0.0, 1.0, -1.0)
    step, weights = np.zeros_like(sign), np.zeros_like(sign)
    for delta, weight in zip(deltas, measured.weights, strict=True):
        agrees = sign * delta > 0.0
        step = step + np.where(agrees, weight * delta, 0.0)
        weights = weights + np.where(agrees, weight, 0.0)
    step = step / np.where(weights > 0.0, weights, 1.0)
    step = np.where(np.isfinite(sum(deltas)), step, sum(deltas))  # what is not finite is not to vanish
    return np.where(step == 0.0, values[0], values[0] + step)
