"""Averages and PeriodicStock in a Lightning Trainer: callbacks, and nothing computed in them.

    from stockpot.train.lightning import AverageCallback
    trainer = Trainer(..., callbacks=[AverageCallback(lambda model: EMA(model, 0.999))])

Their state is part of the Trainer's checkpoints, for ``trainer.fit(..., ckpt_path=...)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from stockpot import errors
from stockpot.train._averages import Average
from stockpot.train._callbacks import Averaging, Stocking, one_run_per_rank
from stockpot.train._merging import Options
from stockpot.train._optimizers import AfterMerge
from stockpot.train._periodic import PeriodicStock
from stockpot.train._schedule import Schedule
from stockpot.train._weights import is_sharded

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    raise errors.MissingExtraError("lightning", "lightning") from None

__all__ = ["AverageCallback", "PeriodicStockCallback", "one_run_per_rank"]


class _Counted(Callback):
    """A callback that is told of optimizer steps and ended epochs, and of what was saved."""

    def __init__(self) -> None:
        self._seen = 0
        self._saved: Mapping[str, Any] | None = None

    def _loaded(self, trainer: Trainer) -> Mapping[str, Any] | None:
        """What the checkpoint held that the run goes on from; None for a run that begins."""
        self._seen = trainer.global_step
        saved, self._saved = self._saved, None
        if saved is None and trainer.ckpt_path is not None:
            raise errors.UsageError(
                f"the run goes on from a checkpoint that holds nothing of {type(self).__name__}",
                file=str(trainer.ckpt_path), remedy="go on from one that a run with this callback saved",
            )  # fmt: skip
        return saved

    def _passed(self, trainer: Trainer, told: Callable[[Literal["step", "epoch"]], object]) -> None:
        """Batches that only accumulate gradients are no steps; an epoch ends before its validation."""
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            told("step")
        if trainer.is_last_batch:
            told("epoch")


class AverageCallback(_Counted):
    """An average of the run (EMA, SWA, LAWA), validated, saved and kept at the end in place of the last weights.

    Arguments: ``average`` makes it from the model; ``schedule``: when it takes the weights (every step by default);
    ``batches``: for BatchNorm, see ``Average.swap``.

    Validation sees the average; a checkpoint's ``state_dict`` is the average (that ``load_from_checkpoint`` reads), the
    weights to train on lie beside it. (Checkpoints of weights only, saved between validations, hold the run's own.)

    Raises UsageError for sharded models: Lightning's checkpoints have no place for each rank's own average.
    """

    KEY = "stockpot_average"

    def __init__(
        self,
        average: Callable[[nn.Module], Average],
        schedule: Schedule | None = None,
        *,
        batches: Iterable[Any] | None = None,
    ) -> None:
        super().__init__()
        self.averaging = Averaging(average, schedule, batches=batches)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on."""
        if is_sharded(pl_module):
            raise errors.UsageError(
                "a sharded model's average cannot be saved with Lightning's checkpoints",
                remedy="call update() and save state_dict() on each rank yourself: docs/training.md",
            )
        self.averaging.begin(pl_module, self._loaded(trainer))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Train the run's own weights."""
        self.averaging.hide()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average."""
        self._passed(trainer, self.averaging.passed)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show it, until the next batch."""
        self.averaging.show()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show it to checkpoints that are saved now."""
        self.averaging.show()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep it."""
        self.averaging.end()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The average as the model's weights; beside it what training goes on from."""
        with self.averaging.shown() as average:
            if average is not None:
                weights = trainer.strategy.lightning_module_state_dict()
                checkpoint["state_dict"] = {name: own.clone() for name, own in weights.items()}
                checkpoint[self.KEY] = self.averaging.state()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep it until training goes on."""
        self._saved = checkpoint.get(self.KEY)


class PeriodicStockCallback(_Counted):
    """Model Stock while training: the replicas meet after every period, and go on from the merged weights.

    ``replicas=N``: this Trainer trains them one after another, so that its epochs (or steps) are N times those of one
    replica; learning-rate schedules are made for one replica's. ``replicas="ranks"``: each rank runs a Trainer of its
    own (``devices=1``), inside ``one_run_per_rank()``. Other arguments as of PeriodicStock and InTurn.

    A merge comes before validation and saving. Afterwards: ``callback.stock.merges``.

    Raises ParameterError where the Trainer's end or its schedules do not fit the replicas, UsageError where one model
    is trained on several ranks that should train one each.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        replicas: int | Literal["ranks"],
        anchor: Mapping[str, Tensor] | str | Path | None = None,
        optimizer_state: AfterMerge = "keep",
        options: Options | None = None,
        park: str | Path = "cpu",
    ) -> None:
        super().__init__()
        self.stocking = Stocking(
            schedule, replicas=replicas, anchor=anchor, optimizer_state=optimizer_state, options=options, park=park
        )

    @property
    def stock(self) -> PeriodicStock:
        """The PeriodicStock, once training has begun."""
        return self.stocking.stock

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on."""
        if trainer.world_size > 1 and not self.stocking.in_turn:
            raise errors.UsageError(
                f"the Trainer trains one model on {trainer.world_size} ranks", expected="one replica on each rank",
                remedy="make and run the Trainer inside one_run_per_rank(), with devices=1",
            )  # fmt: skip
        unit = self.stocking.schedule.unit
        if self.stocking.in_turn:
            _require_own_schedules(trainer, unit)
        steps = trainer.estimated_stepping_batches
        total_steps = None if math.isinf(steps) else int(steps)
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None
        self.stocking.begin(
            pl_module, trainer.optimizers, [config.scheduler for config in trainer.lr_scheduler_configs],
            total=total_steps if unit == "step" else epochs, total_steps=total_steps,
            knob="max_steps" if unit == "step" else "max_epochs", saved=self._loaded(trainer),
        )  # fmt: skip

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step, an epoch more."""
        self._passed(trainer, self.stocking.passed)
        if self.stock.is_finished:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if it ended between merges."""
        self.stocking.end()

    def state_dict(self) -> dict[str, Any]:
        """The replicas that wait, the anchor, the records."""
        return self.stock.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until training goes on."""
        self._saved = state_dict


def _require_own_schedules(trainer: Trainer, unit: Literal["step", "epoch"]) -> None:
    """Refuse schedules that Lightning would move between a change of turns and the next step."""
    for config in trainer.lr_scheduler_configs:
        name = type(config.scheduler).__name__
        if config.reduce_on_plateau:
            raise errors.UsageError(f"{name} follows one replica's metric, and replicas are trained in turn")
        if unit == "step" and config.interval == "epoch":
            raise errors.UsageError(
                f"{name} moves at the ends of the Trainer's epochs, and replicas take turns by steps",
                remedy='give it "interval": "step", or the Schedule unit="epoch"',
            )
