"""RAM: what one model alone has changed is taken as it is, what several have changed is averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stockpot import errors
from stockpot.kernels import Doubles, Elements, Row, blocks, make_by_blocks
from stockpot.methods._base import elementwise
from stockpot.methods._rule import Form, Rule, Unit

_REFERENCE = "Yuan et al., Behavior knowledge merge in reinforced agentic models, arXiv 2601.13572"


@elementwise(base="required", models=(1, None), scale_free=False, reference=_REFERENCE)
def ram(form: Form, *, epsilon: float = 1e-5) -> Rule:
    """The base plus each element's update, averaged over the models that have updated it.

    A model has updated an element where |w_i - w0| is above ``epsilon``; smaller differences are dropped.
    w = w0 + mean of w_i - w0 over the models that have; w_i where it is one alone, and w0 where it is none.

    Arguments: ``epsilon``, in the unit of the weights, 0 or more (default 1e-5, the field's). Returns the rule. Raises
    ParameterError for a negative one. Cost: one pass, in numpy. Reference: arXiv 2601.13572.

    >>> import torch, stockpot
    >>> base = {"w": torch.zeros(3)}
    >>> models = [{"w": torch.tensor([1.0, 1.0, 0.0])}, {"w": torch.tensor([0.0, 3.0, 0.0])}]
    >>> stockpot.merge_state_dicts("ram", base=base, models=models)["w"]
    tensor([1., 2., 0.])
    """
    return _Ram(form, _distance("ram", epsilon), 0.0, 0.0)


@elementwise(base="required", models=(1, None), scale_free=False, reference=_REFERENCE, passes=2)
def ramplus_tl(form: Form, *, epsilon: float = 1e-5, r: float = 0.1, alpha: float = 0.2) -> Rule:
    """RAM with the updates of one model alone made larger, the more so the more of its others are shared.

    As ``ram``; of a model that has updated s elements of the tensor that others have too, and u that no other has,
    updates of its own are scaled by 1 + r min(s / u, alpha).

    Arguments: ``epsilon`` as of ``ram``; ``r``, how much larger (default 0.1); ``alpha``, bound on the share (default
    0.2). Returns the rule. Raises ParameterError for a negative ``epsilon`` or ``alpha``. Cost: two passes, in numpy.
    Reference: arXiv 2601.13572; the shares of each tensor by itself, as the field has it.

    >>> import torch, stockpot
    >>> base = {"w": torch.zeros(3)}
    >>> models = [{"w": torch.tensor([1.0, 1.0, 0.0])}, {"w": torch.tensor([0.0, 3.0, 0.0])}]
    >>> stockpot.merge_state_dicts("ramplus_tl", base=base, models=models)["w"]
    tensor([1.0200, 2.0000, 0.0000])
    """
    return _Ram(form, _distance("ramplus_tl", epsilon), r, _distance("ramplus_tl", alpha, "alpha"))


def _distance(method: str, value: float, name: str = "epsilon") -> float:
    if value < 0.0:
        raise errors.ParameterError(f"{name} of {method} is a size", expected="0 or more", got=value)
    return value


@dataclass(frozen=True)
class _Ram:
    form: Form
    epsilon: float
    r: float
    alpha: float
    unit: Unit = "block"

    def measure(self, tensor: Elements, *, pass_nonfinite: bool) -> Sequence[float]:
        """The scale of each model's own updates."""
        if self.r == 0.0:
            return [1.0] * self.form.models
        own, shared = np.zeros(self.form.models), np.zeros(self.form.models)
        for _, rows in tensor.pieces():
            for _, values in blocks(rows):
                masks = self._updated(values)
                users = np.sum(masks, axis=0)
                own += [np.count_nonzero(mask & (users == 1)) for mask in masks]
                shared += [np.count_nonzero(mask & (users > 1)) for mask in masks]
        return [1.0 + self.r * min(s / u, self.alpha) if u else 1.0 for s, u in zip(shared, own, strict=True)]

    def make(
        self, measured: Sequence[float], place: int, rows: Sequence[Row], out: Row, *, pass_nonfinite: bool
    ) -> None:
        """A piece."""

        def made(start: int, values: list[Doubles]) -> Doubles:
            base, *models = values
            masks = self._updated(values)
            users = np.sum(masks, axis=0)
            total = np.zeros_like(base)
            result = base
            for mask, model, scale in zip(masks, models, measured, strict=True):
                total = total + np.where(mask, model - base, 0.0)
                alone = mask & (users == 1)
                result = np.where(alone, model if scale == 1.0 else base + scale * (model - base), result)
            step = total / np.maximum(users, 1)
            return np.where((users > 1) & (step != 0.0), base + step, result)

        make_by_blocks(rows, out, made, pass_nonfinite=pass_nonfinite)

    def facts(self) -> Mapping[str, object]:
        """Nothing: all of it depends on the weights."""
        return {}

    def _updated(self, values: Sequence[Doubles]) -> list[np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]:
        base, *models = values
        # NaN is an update: it is not to vanish.
        return [~(np.abs(model - base) <= self.epsilon) for model in models]
