"""A tensor of an element-wise method: gone through in pieces as often as its rule asks, and written once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stockpot import errors
from stockpot.checkpoint import TORCH_NAMES, count, itemsize, read_dense
from stockpot.engine._align import Slot
from stockpot.engine._beside import MASK, survey_rule
from stockpot.engine._budget import rule_of
from stockpot.engine._schedule import Look, Make, piece_elements
from stockpot.kernels import NonFiniteInputError, Row, cut, widened

if TYPE_CHECKING:
    from stockpot.engine._worker import Worker


def make(worker: Worker, task: Make, slot: Slot) -> None:
    """Measure what the rule must know, then make piece by piece."""
    rule = rule_of(worker.plan.job, worker.plan.values_of(slot), slot)
    tensor = _Tensor(worker, slot)
    measured = rule.measure(tensor, pass_nonfinite=worker.allow)
    tensor.is_last = True
    for place, rows in tensor.pieces():

        def fill(out: Row, place: int = place, rows: Sequence[Row] = rows) -> None:
            try:
                rule.make(measured, place, rows, out, pass_nonfinite=worker.allow)
            except NonFiniteInputError as error:
                raise NonFiniteInputError(error.source, place + error.index) from None

        worker.write(task.slot, slot, place, len(rows[0]), fill)
    worker.run.made(worker.plan.groups[task.group], rule.facts())


def look(worker: Worker, task: Look, slot: Slot) -> None:
    """Look at a tensor before any is made."""
    rule = survey_rule(worker.plan.job, worker.plan.values_of(slot), slot)

    def put(offset: int, data: NDArray[np.uint8]) -> None:
        worker.run.sink.store_beside(MASK + slot.name, offset, data.data)

    tensor = _Tensor(worker, slot)
    tensor.is_last = True
    worker.run.looks[task.group] = rule.survey(tensor, put, pass_nonfinite=worker.allow)


class _Tensor:
    """The tensor of all inputs, as rules go through it: kept where it fits the worker's memory, else read again."""

    def __init__(self, worker: Worker, slot: Slot) -> None:
        self._worker = worker
        self._slot = slot
        self.count = count(slot.shape)
        self.dtypes = tuple(TORCH_NAMES[info.dtype] for _, info in slot.sources)
        self.room_bytes = worker.plan.budget.key_bytes
        self.is_last = False
        self.survey = worker.run.survey
        self.is_near = all(worker.is_seen(number, info) for number, info in slot.sources)
        self._step = piece_elements(worker.plan, slot)
        # What is seen where it is need not be held.
        fits = sum(self.count * itemsize(info.dtype) + 64 for _, info in slot.sources) <= worker.raw.size
        self._held = worker.load(slot, 0, self.count) if fits and not self.is_near else None

    def pieces(self, *, is_glimpse: bool = False) -> Iterator[tuple[int, Sequence[Row]]]:
        """In order; the views of a piece are dropped when the next is asked for."""
        for start in range(0, self.count, self._step):
            self._worker.check_stop()
            stop = min(start + self._step, self.count)
            yield start, self.load(start, stop)
            self._worker.drop_views()
            if not is_glimpse:
                self._worker.count_elements(self._slot, stop - start, is_last=self.is_last)

    def load(self, start: int, stop: int) -> Sequence[Row]:
        """Some elements."""
        if self._held is not None:
            return cut(self._held, start, stop)
        return self._worker.load(self._slot, start, stop)

    def statistic(self, model: int) -> NDArray[np.float64]:
        """All of it, read once more each time."""
        number, info = self._slot.statistics[model].source
        source = self._worker.plan.inputs.checkpoints[number]
        found = widened(Row(TORCH_NAMES[info.dtype], read_dense(source, info))).reshape(info.shape)
        if not np.isfinite(found).all():
            raise errors.NonFiniteError(
                "NaN or Inf in the statistics", tensor=info.name, file=source.ref, remedy="collect them anew"
            )
        return found
