"""The seam: whatever scores a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from stockpot import errors
from stockpot.evaluate._scores import Scores

if TYPE_CHECKING:
    from torch import Tensor

Form = Literal["state_dict", "checkpoint"]


@dataclass(frozen=True)
class Options:
    """What every evaluator may be told; None: its own default."""

    limit: int | None = None
    """Examples (or batches, for a function that means so) at most."""
    batch: int | None = None
    """Examples worked on together."""
    device: str | None = None
    precision: str | None = None
    """Dtype of the arithmetic: float32, bfloat16, float16."""
    seed: int | None = None
    timeout: float | None = None
    """Seconds for one evaluation."""

    def __post_init__(self) -> None:
        for name in ("limit", "batch", "timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise errors.ParameterError(f"--{name} of an evaluator", expected="more than 0", got=value)

    def given(self) -> dict[str, Any]:
        """What was said, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@runtime_checkable
class Evaluator(Protocol):
    """Scores models. ``form`` says what it takes: a state dict, or the path of a checkpoint."""

    @property
    def name(self) -> str:
        """As the user typed it."""

    @property
    def form(self) -> Form:
        """What ``evaluate`` is to be given."""

    @property
    def uses_folder(self) -> bool:
        """Whether its scores depend on config, tokenizer and the like beside the weights."""

    @property
    def content(self) -> Mapping[str, Any] | None:
        """All that its scores depend on beside the model, as plain data; None: nobody knows, so keep no result."""

    def evaluate(self, model: dict[str, Any] | Path, folder: Path | None = None) -> Scores:
        """Score one model; EvaluatorError where that fails. ``folder``: where the config of a state dict is."""


@runtime_checkable
class Learner(Protocol):
    """A classification task on held-out data."""

    @property
    def content(self) -> Mapping[str, Any] | None:
        """All that its gradients depend on beside the models; None: nobody knows, so a search is not continued."""

    def batches(self, epoch: int, folder: Path | None) -> Iterable[tuple[Any, Tensor]]:
        """(inputs, labels) of one pass over the data; the same for the same epoch."""

    def logits(self, weights: Mapping[str, Tensor], inputs: Any, folder: Path | None) -> Tensor:
        """Answers, ``(examples, classes)``, of the model with these weights, as a function of them."""
