"""PeriodicStock: Model Stock at every period of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from stockpot import errors
from stockpot.train._merging import Merge, Options
from stockpot.train._optimizers import AfterMerge
from stockpot.train._schedule import Schedule, Unit

AFTER_MERGE = ("keep", "reset", "average")


class Replicas(Protocol):
    """Where the replicas are, and how they meet: InTurn, SideBySide."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def current(self) -> int:
        """The one that trains here now, from 0."""

    def begin(self, anchor: Mapping[str, Tensor] | str | Path | None, options: Options) -> None:
        """Settle the anchor (None: the weights as they are), and refuse now what a merge would refuse."""

    def next(self) -> bool:
        """The current replica has reached a merge. True if all have; else another one trains here from now on."""

    def merge(self, at: int, unit: Unit, optimizer_state: AfterMerge) -> Merge:
        """Merge all, and go on from the merged weights."""

    def state_dict(self) -> dict[str, Any]:
        """All that a killed run needs, beside the model and its optimizers."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""


class PeriodicStock:
    """Model Stock while training: at every merge of the schedule all replicas go on from the merged weights.

    Per tensor, w_H = t m + (1 - t) w0 with m the mean of the replicas and t from their angles around w0, the anchor:
    always the weights that the whole run began with, however often it has merged since.

    Arguments: ``replicas``, how they are held (InTurn, SideBySide); ``schedule``; ``anchor``, the pre-trained weights:
    a map of tensors (copied), or a checkpoint as ``stockpot merge`` takes it (in turn: read at every merge, not kept
    in memory); by default the model's weights now. ``optimizer_state`` at a merge: ``keep`` each replica's own
    (default), ``reset``, or ``average`` the moments; learning rates are never touched. ``options``: granularity,
    parameters and policies of the method, memory and workers.

    Raises InputError kinds: at once where the anchor and the model do not correspond; at a merge for NaN and Inf in a
    replica (named; no weight has been changed then).
    Cost of a merge: replicas and anchor are read twice, one model is written. Source: arXiv 2403.19522, section 4.3.

    >>> import torch
    >>> from stockpot.train import InTurn, PeriodicStock, Schedule
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> stock = PeriodicStock(InTurn(model, optimizer, count=2), Schedule(every=1, until=2))
    >>> while not stock.is_finished:
    ...     data = torch.randn(8, 3, generator=torch.Generator().manual_seed(stock.replica))
    ...     loss = (model(data) - data.sum(dim=1, keepdim=True)).square().mean()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     _ = stock.epoch_end()
    >>> [merge.at for merge in stock.merges]
    [1, 2]
    """

    def __init__(
        self,
        replicas: Replicas,
        schedule: Schedule,
        *,
        anchor: Mapping[str, Tensor] | str | Path | None = None,
        optimizer_state: AfterMerge = "keep",
        options: Options | None = None,
    ) -> None:
        if optimizer_state not in AFTER_MERGE:
            raise errors.unknown_name("optimizer_state", optimizer_state, AFTER_MERGE)
        self.replicas, self.schedule, self.optimizer_state = replicas, schedule, optimizer_state
        self.merges: list[Merge] = []
        self.steps = self.epochs = 0
        self._begun = (0, 0)
        replicas.begin(anchor, options or Options())

    @property
    def replica(self) -> int:
        """Whose turn it is, from 0."""
        return self.replicas.current

    @property
    def is_finished(self) -> bool:
        """Whether the last merge of the schedule is done."""
        return self.schedule.is_over(self._count(*self._begun))

    def step(self) -> Merge | None:
        """An optimizer step was taken. Returns what was found, if this was the last replica to reach a merge."""
        self.steps += 1
        return self._passed("step")

    def epoch_end(self) -> Merge | None:
        """An epoch has ended. Returns as ``step``."""
        self.epochs += 1
        return self._passed("epoch")

    def merge(self) -> Merge:
        """Merge now; all replicas must have reached this point."""
        at = self._count(self.steps, self.epochs)
        found = self.replicas.merge(at, self.schedule.unit, self.optimizer_state)
        self._begun = (self.steps, self.epochs)
        self.merges.append(found)
        return found

    def state_dict(self) -> dict[str, Any]:
        """All that a killed run needs beside the model, the optimizers and the extras, which are yours to save.

        Plain values and tensors: ``torch.load(weights_only=True)`` reads it. Holds the anchor, if that is in memory,
        and what is parked.
        """
        return {
            "schedule": asdict(self.schedule),
            "steps": self.steps,
            "epochs": self.epochs,
            "begun": list(self._begun),
            "replicas": self.replicas.state_dict(),
            "merges": [merge.state() for merge in self.merges],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, to the weights of a run that was never killed."""
        if (saved := Schedule(**state["schedule"])).unit != self.schedule.unit:
            raise errors.ParameterError(
                "the saved run counts otherwise", expected=f"{self.schedule.unit}s", got=f"{saved.unit}s"
            )
        self.steps, self.epochs = state["steps"], state["epochs"]
        self._begun = (state["begun"][0], state["begun"][1])
        self.replicas.load_state_dict(state["replicas"])
        self.merges = [Merge.from_state(one) for one in state["merges"]]

    def _count(self, steps: int, epochs: int) -> int:
        return steps if self.schedule.unit == "step" else epochs

    def _passed(self, unit: str) -> Merge | None:
        if unit != self.schedule.unit or not self.schedule.is_due(self._count(self.steps, self.epochs)):
            return None
        if self.replicas.next():
            return self.merge()
        self.steps, self.epochs = self._begun
        return None
