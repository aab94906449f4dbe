"""Averages and PeriodicStock in a Hugging Face Trainer: callbacks, and nothing computed in them.

    from stockpot.train.transformers import AverageCallback
    trainer = Trainer(..., callbacks=[AverageCallback(lambda model: EMA(model, 0.999))])

Their state is saved beside each checkpoint of the Trainer and found again by ``train(resume_from_checkpoint=True)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stockpot import errors
from stockpot.train._averages import Average
from stockpot.train._callbacks import Averaging, Stocking, one_run_per_rank
from stockpot.train._merging import Options
from stockpot.train._optimizers import AfterMerge
from stockpot.train._periodic import PeriodicStock
from stockpot.train._schedule import Schedule, Unit
from stockpot.train._weights import Weights, is_sharded, put_back, trained

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError:
    raise errors.MissingExtraError("transformers", "trainer") from None

__all__ = ["AverageCallback", "PeriodicStockCallback", "one_run_per_rank"]


class _Kept(TrainerCallback, ABC):
    """A callback whose state lies in the Trainer's checkpoint folders; each rank's own where the model is sharded."""

    file: str

    def __init__(self, resume_from: str | Path | None) -> None:
        self._resume_from = resume_from
        self._last_epoch = -1

    @abstractmethod
    def passed(self, unit: Unit) -> None:
        """A step or an epoch has ended."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint saved after an epoch's last step is never told that the epoch has ended: that step says so."""
        self.passed("step")
        if state.epoch is not None and float(state.epoch).is_integer():
            self._end_epoch(state)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Data of unknown length end without warning. Training that stops inside an epoch does not end it."""
        if self._last_epoch != state.global_step and not control.should_training_stop:
            self._end_epoch(state)

    def _end_epoch(self, state: TrainerState) -> None:
        self._last_epoch = state.global_step
        self.passed("epoch")

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Plain values and tensors."""

    def weights_to_train(self, model: nn.Module) -> Weights:
        """The run's own, which are in the model."""
        return trained(model)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """The Trainer has written its checkpoint."""
        model: nn.Module = given["model"]
        if args.should_save or is_sharded(model):
            path = self._path(Path(args.output_dir or ".") / f"checkpoint-{state.global_step}", model)
            # Resuming, the Trainer passes over weights whose names the model has changed on saving (ViT's in
            # transformers 5.23), and trains on from whatever was there: so they are kept here, too.
            torch.save({**self.state(), "weights": self.weights_to_train(model)}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)

    def saved(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> Mapping[str, Any] | None:
        """What was saved with the checkpoint that the Trainer goes on from; None for a run that begins."""
        if not state.global_step:
            return None
        folder = self._resume_from or Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        path = self._path(Path(folder), model)
        if not path.is_file():
            raise errors.UsageError(
                f"the run goes on from step {state.global_step}, but nothing of {type(self).__name__} was saved there",
                file=str(path), remedy="resume_from= says in which checkpoint folder it is",
            )  # fmt: skip
        found: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        put_back(found["weights"], model)
        return found

    def _path(self, folder: Path, model: nn.Module) -> Path:
        return folder / f"{self.file}-rank{dist.get_rank()}.pt" if is_sharded(model) else folder / f"{self.file}.pt"


class AverageCallback(_Kept):
    """An average of the run (EMA, SWA, LAWA), evaluated, saved and kept at the end in place of the last weights.

    Arguments: ``average`` makes it from the model; ``schedule``: when it takes the weights (every step by default);
    ``batches``: for BatchNorm, see ``Average.swap``; ``resume_from``: the checkpoint folder, if not the Trainer's own.

    While the Trainer evaluates or saves, the model holds the average: metrics, ``checkpoint-N``, the best checkpoint
    and the model after ``train()`` are of the average. The weights to train on lie in ``checkpoint-N`` too.
    """

    file = "stockpot_average"

    def __init__(
        self,
        average: Callable[[nn.Module], Average],
        schedule: Schedule | None = None,
        *,
        batches: Iterable[Any] | None = None,
        resume_from: str | Path | None = None,
    ) -> None:
        super().__init__(resume_from)
        self.averaging = Averaging(average, schedule, batches=batches)

    def state(self) -> dict[str, Any]:
        """The average, and while it is swapped in the weights of the run."""
        return self.averaging.state()

    def weights_to_train(self, model: nn.Module) -> Weights:
        """Nothing where the state has them."""
        average = self.averaging.average
        return {} if average is not None and average.is_swapped_in else trained(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Begin, or go on."""
        self.averaging.begin(given["model"], self.saved(args, state, given["model"]))

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Train the run's own weights."""
        self.averaging.hide()

    def passed(self, unit: Unit) -> None:
        """Average."""
        self.averaging.passed(unit)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Average; show it to what comes next."""
        super().on_step_end(args, state, control)
        self._show(control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The same."""
        super().on_epoch_end(args, state, control)
        self._show(control)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep it; the best checkpoint, if that was loaded, holds it already."""
        self.averaging.end(keep=not (args.load_best_model_at_end and state.best_model_checkpoint))

    def _show(self, control: TrainerControl) -> None:
        if control.should_evaluate or control.should_save:
            self.averaging.show()


class PeriodicStockCallback(_Kept):
    """Model Stock while training: the replicas meet after every period, and go on from the merged weights.

    ``replicas=N``: this Trainer trains them one after another, so that its epochs (or steps) are N times those of one
    replica, and its learning-rate schedule is yours to give, for one replica: ``Trainer(optimizers=(optimizer,
    schedule))``. ``replicas="ranks"``: each rank runs a Trainer of its own, inside ``one_run_per_rank()``.
    Other arguments as of PeriodicStock and InTurn; ``resume_from``: the checkpoint folder, if not the Trainer's own.

    Merges come before the Trainer evaluates and saves. Afterwards: ``callback.stock.merges``.

    Raises ParameterError where the Trainer's end or its schedule do not fit the replicas, UsageError where one model
    is trained on several ranks that should train one each.
    """

    file = "stockpot_replicas"

    def __init__(
        self,
        schedule: Schedule,
        *,
        replicas: int | Literal["ranks"],
        anchor: Mapping[str, Tensor] | str | Path | None = None,
        optimizer_state: AfterMerge = "keep",
        options: Options | None = None,
        park: str | Path = "cpu",
        resume_from: str | Path | None = None,
    ) -> None:
        super().__init__(resume_from)
        self.stocking = Stocking(
            schedule, replicas=replicas, anchor=anchor, optimizer_state=optimizer_state, options=options, park=park
        )

    @property
    def stock(self) -> PeriodicStock:
        """The PeriodicStock, once training has begun."""
        return self.stocking.stock

    def state(self) -> dict[str, Any]:
        """The replicas that wait, the anchor, the records."""
        return self.stock.state_dict()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Begin, or go on."""
        if args.world_size > 1 and not self.stocking.in_turn:
            raise errors.UsageError(
                f"the Trainer trains one model on {args.world_size} ranks", expected="one replica on each rank",
                remedy="make and run the Trainer inside one_run_per_rank()",
            )  # fmt: skip
        if not self.stocking.in_turn and hasattr(given["model"], "should_save_on_this_rank"):
            given["model"].should_save_on_this_rank = _each_rank_saves
        by_steps = self.stocking.schedule.unit == "step"
        self.stocking.begin(
            given["model"], [given["optimizer"]], [given["lr_scheduler"]],
            total=state.max_steps if by_steps else state.num_train_epochs, total_steps=state.max_steps,
            knob="max_steps" if by_steps else "num_train_epochs", saved=self.saved(args, state, given["model"]),
        )  # fmt: skip

    def passed(self, unit: Unit) -> None:
        """The next one's turn, or a merge, where it is due."""
        self.stocking.passed(unit)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Train, until the last merge is done."""
        super().on_step_end(args, state, control)
        self._stop_if_finished(control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The same."""
        super().on_epoch_end(args, state, control)
        self._stop_if_finished(control)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Say so if it ended between merges."""
        self.stocking.end()

    def _stop_if_finished(self, control: TrainerControl) -> None:
        if self.stock.is_finished:
            control.should_training_stop = True


def _each_rank_saves(is_main_process: bool) -> bool:
    """Models ask torch.distributed who saves, and the first rank would: but here each rank is a run of its own."""
    return is_main_process
