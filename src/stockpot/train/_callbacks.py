"""What the callbacks of trainers share: when to average, when to show the average, when to merge. No trainer here."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn, optim

from stockpot import errors
from stockpot.train._averages import Average
from stockpot.train._in_turn import InTurn, Stateful
from stockpot.train._merging import Merge, Options
from stockpot.train._optimizers import AfterMerge
from stockpot.train._periodic import PeriodicStock
from stockpot.train._schedule import Schedule, Unit
from stockpot.train._side_by_side import SideBySide

LAUNCHER = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE")


class Averaging:
    """An average of a run that a trainer drives.

    ``average`` makes it, from the model: ``lambda model: EMA(model, 0.999)``, ``SWA``. ``schedule``: when its
    ``update`` is called; after every step by default. ``batches``: for BatchNorm, see ``Average.swap``.
    """

    def __init__(
        self,
        average: Callable[[nn.Module], Average],
        schedule: Schedule | None = None,
        *,
        batches: Iterable[Any] | None = None,
    ) -> None:
        self.schedule = schedule or Schedule(every=1, unit="step")
        self.average: Average | None = None
        self._make, self._batches = average, batches
        self._counts: dict[Unit, int] = {"step": 0, "epoch": 0}

    def begin(self, model: nn.Module, saved: Mapping[str, Any] | None) -> None:
        """Training begins, or goes on from what was saved."""
        self.average = self._make(model)
        self._counts = {"step": 0, "epoch": 0}
        if saved is not None:
            self._counts = {"step": saved["steps"], "epoch": saved["epochs"]}
            self.average.load_state_dict(saved["average"])

    def passed(self, unit: Unit) -> None:
        """A step or an epoch has ended."""
        assert self.average is not None
        self._counts[unit] += 1
        if unit == self.schedule.unit and self.schedule.is_due(self._counts[unit]):
            self.average.swap_out()
            self.average.update()

    def show(self) -> None:
        """Evaluation or saving is next: the model holds the average, once there is one."""
        if self.average is not None and self.average.count:
            self.average.swap_in(self._batches)

    def hide(self) -> None:
        """Training is next: the model holds its own weights."""
        if self.average is not None:
            self.average.swap_out()

    @contextlib.contextmanager
    def shown(self) -> Iterator[Average | None]:
        """The average in the model; afterwards the weights that were there before. None where there is none yet."""
        before = self.average is not None and self.average.is_swapped_in
        self.show()
        try:
            yield self.average
        finally:
            if not before:
                self.hide()

    def end(self, *, keep: bool = True) -> None:
        """Training is over: the average stays in the model, or with ``keep=False`` what the trainer put there."""
        if keep and self.average is not None and self.average.count:
            self.average.settle(self._batches)
        self.average = None

    def state(self) -> dict[str, Any]:
        """For ``begin``."""
        assert self.average is not None
        return {
            "steps": self._counts["step"],
            "epochs": self._counts["epoch"],
            "average": self.average.state_dict(),
        }


class Stocking:
    """A PeriodicStock that a trainer drives.

    ``replicas``: how many are trained in turn, or ``ranks``: each rank of the job trains one (``one_run_per_rank``).
    The schedule's ``until`` is taken from the trainer where it is None. Further arguments as of PeriodicStock, InTurn.
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
        if isinstance(replicas, str) and replicas != "ranks":
            raise errors.unknown_name("replicas", replicas, ("ranks",))
        self.schedule, self._replicas, self._park = schedule, replicas, park
        self._anchor, self._optimizer_state, self._options = anchor, optimizer_state, options
        self._stock: PeriodicStock | None = None

    @property
    def in_turn(self) -> bool:
        """Whether one trainer trains all replicas."""
        return self._replicas != "ranks"

    @property
    def stock(self) -> PeriodicStock:
        """The PeriodicStock, once training has begun: ``stock.replica`` trains now, ``stock.merges`` says what was."""
        if self._stock is None:
            raise errors.UsageError("training has not begun")
        return self._stock

    def begin(
        self,
        model: nn.Module,
        optimizers: Sequence[optim.Optimizer],
        extras: Sequence[Stateful],
        *,
        total: int | None,
        total_steps: int | None,
        knob: str,
        saved: Mapping[str, Any] | None,
    ) -> None:
        """Training begins, or goes on from what was saved.

        ``total``: steps or epochs, by the schedule's unit, that the trainer will take, set by ``knob``; ``total_steps``
        in any case in steps: None where it does not know.
        """
        if self.in_turn:
            assert isinstance(self._replicas, int)
            _require_horizons(extras, total_steps, self._replicas)
        schedule = self._settled(total, knob)
        holding: InTurn | SideBySide
        if isinstance(self._replicas, int):
            holding = InTurn(model, optimizers, count=self._replicas, extras=extras, park=self._own_park())
        else:
            holding = SideBySide(model, optimizers)
        self._stock = PeriodicStock(
            holding, schedule, anchor=self._anchor, optimizer_state=self._optimizer_state, options=self._options
        )
        if saved is not None:
            self._stock.load_state_dict(saved)

    def passed(self, unit: Unit) -> Merge | None:
        """A step or an epoch of the replica whose turn it is has ended; returns as PeriodicStock does."""
        return self.stock.step() if unit == "step" else self.stock.epoch_end()

    def end(self) -> None:
        """Training has ended. Warns if that was between merges: then the model is one replica, not what was merged."""
        stock = self.stock
        unit = stock.schedule.unit
        last = stock.merges[-1].at if stock.merges else 0
        here = stock.steps if unit == "step" else stock.epochs
        if here != last or (self.in_turn and stock.replica):
            warnings.warn(
                f"training ended at {unit} {here} of replica {stock.replica}, the last merge was at {last}: "
                "the model holds that replica's weights, not merged ones",
                stacklevel=3,
            )

    def _settled(self, total: int | None, knob: str) -> Schedule:
        """The schedule with its end; refused where the trainer's own end comes before it."""
        schedule, times = self.schedule, self._replicas if isinstance(self._replicas, int) else 1
        if total is None:
            return schedule
        if schedule.until is None and total % times == 0:
            return Schedule(schedule.every, schedule.unit, schedule.warm_up, total // times)
        needed = (schedule.until or -(-total // times)) * times
        if needed > total or schedule.until is None:
            raise errors.ParameterError(
                f"training would end before the last merge of its {times} replicas" if times > 1
                else "training would end before the last merge",
                expected=f"{knob}={needed}, {needed // times} {schedule.unit}s for each replica", got=total,
            )  # fmt: skip
        return schedule

    def _own_park(self) -> str | Path:
        """Ranks that share a replica's training share no file."""
        if self._park == "cpu" or not (dist.is_available() and dist.is_initialized()):
            return self._park
        return Path(self._park) / f"rank-{dist.get_rank()}"


def _require_horizons(extras: Sequence[Stateful], total_steps: int | None, replicas: int) -> None:
    """Refuse learning-rate schedules that fall over the steps of all replicas together."""
    for schedule in extras:
        found = [getattr(schedule, name, None) for name in ("T_max", "total_steps", "total_iters")]
        rates = getattr(schedule, "lr_lambdas", ())
        found.extend(getattr(rate, "keywords", {}).get("num_training_steps") for rate in rates)
        if total_steps and total_steps in found:
            raise errors.ParameterError(
                f"the learning rate's schedule ({type(schedule).__name__}) runs over all replicas' steps, but each "
                "replica has a schedule of its own",
                expected=f"{-(-total_steps // replicas)} steps", got=total_steps,
                remedy="make the schedule for one replica's steps and give it to the trainer",
            )  # fmt: skip


@contextlib.contextmanager
def one_run_per_rank() -> Iterator[int]:
    """Inside it, each process that ``torchrun`` started is a training run of its own; yields the rank.

    Trainers that find a launcher's variables train one model on all ranks. Here they see none, and one GPU where CUDA
    is not in use yet, while ``torch.distributed`` is there for merges: PeriodicStock with replicas ``ranks``. Give each
    rank a folder and a seed of its own. The variables come back at the end.

    Raises UsageError where no launcher has started this process.
    """
    if not dist.is_initialized() and not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        raise errors.UsageError("there are no ranks", expected="a process that torchrun started")
    hidden = [name for name in os.environ if name in LAUNCHER or name.startswith("TORCHELASTIC_")]
    if torch.cuda.is_available() and not torch.cuda.is_initialized():
        hidden.append("CUDA_VISIBLE_DEVICES")
    kept = {name: os.environ.get(name) for name in hidden}
    if not dist.is_initialized():
        dist.init_process_group()
    try:
        for name in hidden:
            os.environ.pop(name, None)
        if "CUDA_VISIBLE_DEVICES" in kept:
            own = (kept["CUDA_VISIBLE_DEVICES"] or ",".join(map(str, range(torch.cuda.device_count())))).split(",")
            os.environ["CUDA_VISIBLE_DEVICES"] = own[int(kept.get("LOCAL_RANK") or 0) % len(own)]
        yield dist.get_rank()
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
