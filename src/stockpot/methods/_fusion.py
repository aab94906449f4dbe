"""Arcee Fusion: a base with the elements of a model that matter most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from stockpot.kernels import BLOCK, Doubles, Elements, Keyed, Row, Wanted, blocks, largest, make_by_blocks
from stockpot.methods._base import elementwise
from stockpot.methods._rule import Form, Rule, Unit


@elementwise(
    base="member",
    models=(1, 2),
    affine=False,
    scale_free=False,
    reference="none: described by Arcee, and in the documentation of mergekit",
    passes=3,
)
def arcee_fusion(form: Form) -> Rule:
    """The base, with the elements of the model whose change is important.

    The importance of an element is |w1 - w0| times KL(softmax(w1) || softmax(w0)) of the last axis it lies in (of a
    vector: all of it). Elements of an importance from median + 1.5 (third - first quartile) of the tensor on are the
    model's, the others the base's, bytes as they are. Quartiles are the elements of rank floor(q (n - 1)).

    Arguments: none. Returns the rule. Cost: three passes or four, in numpy. The softmax of weights depends on their
    scale: the method does.

    >>> import torch, stockpot
    >>> models = [{"w": torch.zeros(5)}, {"w": torch.tensor([0.0, 0.1, -0.2, 0.1, 4.0])}]
    >>> stockpot.merge_state_dicts("arcee_fusion", models=models)["w"]
    tensor([0., 0., 0., 0., 4.])
    """
    return _Fusion(form)


@dataclass(frozen=True)
class _Fusion:
    form: Form
    unit: Unit = "row"

    @property
    def columns(self) -> int:
        """Elements of the last axis."""
        return max(self.form.shape[-1], 1) if self.form.shape else 1

    def measure(self, tensor: Elements, *, pass_nonfinite: bool) -> float:
        """The importance from which on elements are the model's."""
        ranks = [math.floor(q * (tensor.count - 1)) for q in (0.25, 0.5, 0.75)]
        keyed = Keyed(tensor, partial(_importance, self.columns), self.columns)
        if tensor.count <= BLOCK:
            (keys,) = [values[1] for _, rows in keyed.pieces() for _, values in blocks(rows)]
            first, median, third = np.sort(keys)[ranks]
        else:
            wanted = [Wanted(tensor.count - rank) for rank in ranks]
            first, median, third = (one.key for one in largest(keyed, [wanted])[0])
        return float(median + 1.5 * (third - first))

    def make(self, measured: float, place: int, rows: Sequence[Row], out: Row, *, pass_nonfinite: bool) -> None:
        """A piece of whole rows."""

        def made(start: int, values: list[Doubles]) -> Doubles:
            base, model = values
            chosen = np.where(_importance(self.columns, values) >= measured, model, base)
            return np.where(np.isfinite(model - base), chosen, base + (model - base))

        size = max(BLOCK // self.columns, 1) * self.columns
        make_by_blocks(rows, out, made, size=size, pass_nonfinite=pass_nonfinite)

    def facts(self) -> Mapping[str, object]:
        """Nothing: all of it depends on the weights."""
        return {}


def _importance(columns: int, values: Sequence[Doubles]) -> Doubles:
    base, model = (one.reshape(-1, columns) for one in values)
    step = model - base
    # log p - log q by the difference itself: where the two are near, that of the logarithms has no digits left.
    base_top, model_top = base.max(axis=1, keepdims=True), model.max(axis=1, keepdims=True)
    base_sum = np.exp(base - base_top).sum(axis=1, keepdims=True)
    parts = np.exp(model - model_top)
    model_sum = parts.sum(axis=1, keepdims=True)
    apart = (model_top - base_top) + np.log(model_sum / base_sum)
    divergence = np.maximum((parts / model_sum * (step - apart)).sum(axis=1, keepdims=True), 0.0)
    return np.asarray((np.abs(step) * divergence).reshape(-1))
