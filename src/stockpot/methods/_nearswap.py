"""NearSwap: a base moved towards a model, all the way where the two are near."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stockpot import errors
from stockpot.kernels import Doubles, Elements, Row, make_by_blocks
from stockpot.methods._base import elementwise
from stockpot.methods._rule import Form, Rule, Unit


@elementwise(
    base="member",
    models=(1, 2),
    scale_free=False,
    reference="none: described in the documentation of mergekit",
)
def nearswap(form: Form, *, t: float) -> Rule:
    """The base, with the model's values where they are near, and a step of t towards them elsewhere.

    With s = w1 - w0: w = w0 + s min(1, t / |s|), which is w1 where |s| is at most t, and w0 moved by t elsewhere.

    Arguments: ``t``, in the unit of the weights, 0 or more (0: the base's bytes). Returns the rule. Raises
    ParameterError for a negative ``t``. Cost: one pass, in numpy.

    >>> import torch, stockpot
    >>> models = [{"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([1.25, 3.0])}]
    >>> stockpot.merge_state_dicts("nearswap", models=models, parameters={"t": 0.5})["w"]
    tensor([1.2500, 1.5000])
    """
    if t < 0.0:
        raise errors.ParameterError("t of nearswap is a distance", expected="0 or more", got=t)
    return _NearSwap(t)


@dataclass(frozen=True)
class _NearSwap:
    t: float
    unit: Unit = "block"

    def measure(self, tensor: Elements, *, pass_nonfinite: bool) -> None:
        """Nothing need be known."""

    def make(self, measured: None, place: int, rows: Sequence[Row], out: Row, *, pass_nonfinite: bool) -> None:
        """A piece."""

        def made(start: int, values: Sequence[Doubles]) -> Doubles:
            base, model = values
            step = model - base
            if not self.t:
                return np.where(np.isfinite(step), base, base + step)
            moved = np.where(np.isfinite(step), base + np.copysign(self.t, step), base + step)
            return np.where(np.abs(step) <= self.t, model, moved)

        make_by_blocks(rows, out, made, pass_nonfinite=pass_nonfinite)

    def facts(self) -> Mapping[str, object]:
        """Nothing."""
        return {}
