"""RegMean: linear layers merged by regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stockpot import errors
from stockpot.kernels import (
    NonFiniteInputError,
    OverflowedError,
    Row,
    first_nonfinite,
    mix,
    read_wide,
    regressed,
    write_wide,
)
from stockpot.methods._base import PerModelText, Statistics, elementwise
from stockpot.methods._rule import Form, Rule, Tensor, Unit

_ASYMMETRY = 1e-9


@elementwise(
    base="unused",
    models=(1, None),
    reference="Jin et al., Dataless knowledge fusion by merging weights of language models, arXiv 2212.09849",
    passes=2,
    statistics=Statistics("grams", kind="inputs", streamed=False),
)
def regmean(form: Form, *, grams: PerModelText, alpha: float = 0.9, reduce: Literal["sum", "mean"] = "sum") -> Rule:
    """Linear layers whose answers are closest to those of all models, each on its own data; all else the mean.

    W = (sum_i W_i G_i) (sum_i G_i)^-1 for a weight of shape (outputs, inputs), G_i = X_i^T X_i of what the layer is
    given in model i; off the diagonal G_i is multiplied by alpha.

    Arguments: ``grams``, for each model the file that ``stockpot collect inputs`` writes; ``alpha``, 0 to 1: 1 is the
    regression itself, 0 weighs each input by itself (default .9, the paper's for most models); ``reduce``: ``sum``
    (default, the paper's: data count by their rows) or ``mean`` (each model's G is divided by its rows first, so that
    all models count alike). Tensors without G (embeddings, norms, biases) are the plain mean, and the plan says how
    many. Along inputs that no data has seen, where sum_i G_i is singular, W is the plain mean too: of all solutions the
    one nearest to it.
    Returns the rule. Raises ParameterError for alpha outside 0 to 1, or ``mean`` of G without rows; MethodError for a G
    that is none. Cost: one pass, one decomposition of inputs x inputs for each layer; memory is stated in the plan:
    each model's tensor in float64, and some matrices of inputs x inputs, beside ``--memory``.
    Reference: arXiv 2212.09849, the closed form and its off-diagonal scale.

    >>> import torch, stockpot, safetensors.torch, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> files = [f"{folder}/{number}.safetensors" for number in range(2)]
    >>> for file, seen in zip(files, ([3.0, 1.0], [1.0, 1.0])):
    ...     safetensors.torch.save_file({"w": torch.diag(torch.tensor(seen))}, file)
    >>> models = [{"w": torch.tensor([[0.0, 0.0]])}, {"w": torch.tensor([[4.0, 4.0]])}]
    >>> stockpot.merge_state_dicts("regmean", models=models, parameters={"grams": files})["w"]
    tensor([[1., 2.]])
    """
    if not 0.0 <= alpha <= 1.0:
        raise errors.ParameterError("alpha of regmean is a share", expected="0 to 1", got=alpha)
    if reduce == "mean" and any(not one.rows for one in form.statistics):
        raise errors.MethodError(
            "reduce=mean needs the rows that each Gram matrix is of", expected="rows in the file's metadata",
            got="none", remedy="collect it by stockpot collect inputs, or set reduce=sum",
        )  # fmt: skip
    return Regression(form, alpha, reduce == "mean")


@dataclass(frozen=True)
class Regression:
    """The weight whose answers to the models' inputs are nearest to the models' own."""

    form: Form
    alpha: float
    by_rows: bool
    unit: Unit = "block"

    def measure(self, tensor: Tensor, *, pass_nonfinite: bool) -> NDArray[np.float64] | None:
        """The result; None where there is nothing to regress on."""
        if not self.form.statistics:
            return None
        wide = [np.empty(tensor.count) for _ in range(self.form.models)]
        for place, rows in tensor.pieces():
            for number, row in enumerate(rows):
                wide[number][place : place + len(row)] = read_wide(row)
        transposed = self.form.statistics[0].transposed
        weights = [one.reshape(self.form.shape).T if transposed else one.reshape(self.form.shape) for one in wide]
        found = regressed(weights, (self._gram(tensor, number) for number in range(self.form.models)))
        return np.ascontiguousarray(found.T if transposed else found).reshape(-1)

    def _gram(self, tensor: Tensor, model: int) -> NDArray[np.float64]:
        """A model's G, shrunk and divided as asked for."""
        gram = tensor.statistic(model)
        diagonal = np.diagonal(gram).copy()
        if (diagonal < 0.0).any() or np.abs(gram - gram.T).max(initial=0.0) > _ASYMMETRY * diagonal.max(initial=0.0):
            raise errors.MethodError(
                f"the Gram matrix of model {model + 1} is none", tensor=self.form.name,
                expected="symmetric, its diagonal 0 or more", remedy="collect it anew",
            )  # fmt: skip
        gram *= self.alpha
        np.fill_diagonal(gram, diagonal)
        rows = self.form.statistics[model].rows
        return gram / rows if self.by_rows and rows else gram

    def make(
        self,
        measured: NDArray[np.float64] | None,
        place: int,
        rows: Sequence[Row],
        out: Row,
        *,
        pass_nonfinite: bool,
    ) -> None:
        """A piece."""
        if measured is None:
            mix(rows, np.full(len(rows), 1.0 / len(rows)), out, pass_nonfinite=pass_nonfinite)
            return
        for number, row in enumerate(() if pass_nonfinite else rows):
            if (at := first_nonfinite(row)) >= 0:
                raise NonFiniteInputError(number, at)
        write_wide(measured[place : place + len(out)], out)
        if not pass_nonfinite and (at := first_nonfinite(out)) >= 0:
            raise OverflowedError(at)

    def facts(self) -> Mapping[str, object]:
        """Whether it was regressed."""
        return {"regressed": bool(self.form.statistics)}
