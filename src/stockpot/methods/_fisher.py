"""Fisher-weighted averaging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stockpot import errors
from stockpot.kernels import Row, first_negative, weighted
from stockpot.methods._base import PerModel, PerModelText, Statistics, each, elementwise
from stockpot.methods._rule import Form, Rule, Tensor, Unit


@elementwise(
    base="unused",
    models=(1, None),
    reference="Matena and Raffel, Merging models with Fisher-weighted averaging, arXiv 2111.09832",
    statistics=Statistics("fisher", kind="fisher", streamed=True),
)
def fisher(form: Form, *, fisher: PerModelText, weight: PerModel = (1.0,)) -> Rule:
    """Average of the models, each element weighed by how much each model's answers depend on it.

    w = sum_i weight_i F_i w_i / sum_i weight_i F_i, element by element.

    Arguments: ``fisher``, for each model the file of its diagonal Fisher values, as ``stockpot collect fisher`` writes
    it (or any safetensors file of values named as the model's tensors); ``weight``, one for each model, 0 or more
    (default 1). Where the F of all models are zero, and for tensors that no file has (buffers), it is the weighted
    mean. No floor is added to F: whatever its scale, the result is the same. Returns the rule. Raises ParameterError
    for weights below zero or all zero; MethodError for values below zero. Cost: one pass over models and values.
    Reference: arXiv 2111.09832, section 3; a small constant under F has a scale, and is left out.

    >>> import torch, stockpot, safetensors.torch, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> files = [f"{folder}/{number}.safetensors" for number in range(2)]
    >>> for file, value in zip(files, (3.0, 1.0)):
    ...     safetensors.torch.save_file({"w": torch.tensor([value, 0.0])}, file)
    >>> models = [{"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([4.0, 4.0])}]
    >>> stockpot.merge_state_dicts("fisher", models=models, parameters={"fisher": files})["w"]
    tensor([1., 2.])
    """
    weights = each(weight, form.models)
    if (weights < 0).any() or not weights.any():
        raise errors.ParameterError(
            "the weights of fisher cannot be these", expected="0 or more, not all 0", got=weights.tolist()
        )
    return Weighed(form, tuple(weights.tolist()))


@dataclass(frozen=True)
class Weighed:
    """Means weighed by values that come as further rows behind the models'; of a tensor without them, by weights."""

    form: Form
    weight: tuple[float, ...]
    unit: Unit = "block"

    def measure(self, tensor: Tensor, *, pass_nonfinite: bool) -> None:
        """Each element is made by itself."""

    def make(self, measured: None, place: int, rows: Sequence[Row], out: Row, *, pass_nonfinite: bool) -> None:
        """A piece."""
        models, values = rows[: self.form.models], rows[self.form.models :]
        for number, row in enumerate(values):
            if (at := first_negative(row)) >= 0:
                raise errors.MethodError(
                    f"a Fisher value of model {number + 1} is below zero", tensor=self.form.name, expected="0 or more",
                    got=f"index {place + at} of the tensor's elements", remedy="collect it anew",
                )  # fmt: skip
        weighted(models, np.array(self.weight), values, out, pass_nonfinite=pass_nonfinite)

    def facts(self) -> Mapping[str, object]:
        """Which weights it was mixed by."""
        return {"weighed": "fisher" if self.form.statistics else "mean"}
