"""EMR-Merging: one model for all tasks, and a mask and a scale for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stockpot import errors
from stockpot.kernels import (
    BLOCK,
    NonFiniteInputError,
    OverflowedError,
    Row,
    cut,
    first_nonfinite,
    read_wide,
    write_wide,
)
from stockpot.methods._base import ModelPlace, elementwise
from stockpot.methods._rule import Form, Put, Rule, Tensor, Unit

STEP = 1 << 14
"""Elements that are made at once: what is wide of them stays in the caches."""


@elementwise(
    base="required",
    models=(1, None),
    reference="Huang et al., EMR-Merging: tuning-free high-performance model merging, arXiv 2405.17461",
    passes=2,
    beside="stockpot_emr.safetensors",
)
def emr(form: Form, *, task: ModelPlace = -1) -> Rule:
    """One model that all tasks share, with a mask and a scale for each task beside it; or one task's model.

    Of the task vectors d_t = w_t - w0, at each element: the sign of their sum is elected, and the largest magnitude of
    those that have it; that is u. Task t's mask M_t is where d_t has the sign of u; its scale, over all tensors, is
    s_t = sum |d_t| / sum |M_t u|. The unified model is w0 + u; task t's is w0 + s_t M_t u.

    Arguments: ``task``: one of the models, by its number from 1, as it was typed, or by the last part of its path: that
    task's model is written. Without it (default) the unified model is, and beside it ``stockpot_emr.safetensors`` with
    the masks, one bit an element, and the scales. A task whose elements are all outvoted has scale 0; one without any
    step 1. With one model the result has that model's bits. Returns the rule. Cost: a pass for masks and scales, and
    one for the model; a task's model needs no file of the unified one.
    Reference: arXiv 2405.17461, elect, mask, rescale.

    >>> import torch, stockpot
    >>> base = {"w": torch.zeros(4)}
    >>> models = [{"w": torch.tensor([1.0, 3.0, -2.0, 0.0])}, {"w": torch.tensor([2.0, -1.0, -1.0, 0.0])}]
    >>> stockpot.merge_state_dicts("emr", base=base, models=models)["w"]
    tensor([ 2.,  3., -2.,  0.])
    >>> stockpot.merge_state_dicts("emr", base=base, models=models, parameters={"task": 2})["w"]
    tensor([ 2.,  0., -2.,  0.])
    """
    return Elected(form, task)


@dataclass(frozen=True)
class Elected:
    """At each element the base's value, or that of the model farthest from it on the elected side."""

    form: Form
    task: int
    unit: Unit = "block"

    @property
    def awaits_survey(self) -> bool:
        """A task's model needs its scale."""
        return self.task >= 0

    @property
    def beside(self) -> tuple[int, ...]:
        """One row of bits for each task."""
        return () if self.awaits_survey else (self.form.models, -(-math.prod(self.form.shape) // 8))

    def survey(self, tensor: Tensor, put: Put, *, pass_nonfinite: bool) -> NDArray[np.float64]:
        """Of each task sum |d_t|, then of each sum |M_t u|, as far as this tensor goes; its masks are put down."""
        parts = []
        width = -(-tensor.count // 8)
        for place, rows in tensor.pieces():
            _require_finite(rows, place, pass_nonfinite)
            for start in range(0, len(rows[0]), BLOCK):
                steps, toward, farthest = _elected(cut(rows, start, min(start + BLOCK, len(rows[0]))))[1:]
                agree = [own > 0.0 for own in toward]
                moved = [float(np.abs(step).sum()) for step in steps]
                parts.append(moved + [float(np.where(own, farthest, 0.0).sum()) for own in agree])
                for number, own in enumerate(agree if self.beside else ()):
                    put(number * width + (place + start) // 8, np.packbits(own, bitorder="little"))
        return np.array([math.fsum(column) for column in np.transpose(parts)])

    def concluded(self, total: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
        """The scales of all tasks, from the sums over all tensors."""
        own, kept = total.reshape(2, -1)
        with np.errstate(all="ignore"):
            return {"scales": np.where(kept > 0.0, own / kept, np.where(own > 0.0, 0.0, 1.0))}

    def measure(self, tensor: Tensor, *, pass_nonfinite: bool) -> float:
        """The task's scale."""
        if not self.awaits_survey:
            return 1.0
        if tensor.survey is None or tensor.survey.size != 2 * self.form.models:
            raise errors.MethodError("emr needs every model in every tensor", tensor=self.form.name)
        return float(self.concluded(tensor.survey)["scales"][self.task])

    def make(self, measured: float, place: int, rows: Sequence[Row], out: Row, *, pass_nonfinite: bool) -> None:
        """A piece."""
        _require_finite(rows, 0, pass_nonfinite)
        for start in range(0, len(out), STEP):
            stop = min(start + STEP, len(out))
            write_wide(self._made(cut(rows, start, stop), measured), out.cut(start, stop))
        if not pass_nonfinite and (at := first_nonfinite(out)) >= 0:
            raise OverflowedError(at)

    def _made(self, rows: Sequence[Row], scale: float) -> NDArray[np.float64]:
        """Elements; where the step is a model's own, its value, whatever the difference was rounded to."""
        wide, steps, toward, farthest = _elected(rows)
        found = wide[0].copy()
        if self.awaits_survey:
            own, step = toward[self.task], scale * farthest
            found = np.where((own > 0.0) & (step > 0.0), wide[0] + np.copysign(step, steps[self.task]), found)
            kept = [(own > 0.0) & (own == step)]
            wide = [wide[0], wide[1 + self.task]]
        else:
            kept = [(own > 0.0) & (own == farthest) for own in toward]
        for place, one in zip(kept, wide[1:], strict=True):
            np.copyto(found, one, where=place)
        total = sum(steps[1:], steps[0])
        return np.where(np.isnan(total), total, found)

    def facts(self) -> Mapping[str, object]:
        """Nothing beside what the recipe says."""
        return {}


Wide = list[NDArray[np.float64]]


def _elected(rows: Sequence[Row]) -> tuple[Wide, Wide, Wide, NDArray[np.float64]]:
    """Elements of all inputs, their steps from the base, how far each goes to the elected side, and the farthest."""
    wide = [read_wide(row) for row in rows]
    with np.errstate(all="ignore"):
        steps = [one - wide[0] for one in wide[1:]]
        side = np.sign(sum(steps[1:], steps[0]))
        toward = [step * side for step in steps]
        return wide, steps, toward, np.maximum.reduce(toward)


def _require_finite(rows: Sequence[Row], place: int, pass_nonfinite: bool) -> None:
    for number, row in enumerate(() if pass_nonfinite else rows):
        if (at := first_nonfinite(row)) >= 0:
            raise NonFiniteInputError(number, place + at)
