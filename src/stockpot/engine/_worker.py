"""One worker: its buffers, and what it does for each kind of task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stockpot import errors
from stockpot.checkpoint import TORCH_NAMES, TensorInfo, count, is_mergeable, itemsize, nbytes
from stockpot.engine._align import Slot, source_path
from stockpot.engine._budget import ALIGNMENT, STAGE_BYTES, row_elements
from stockpot.engine._execute import Cancelled, Run, Solution
from stockpot.engine._plan import HELD_PIECE, is_summed
from stockpot.engine._schedule import Copy, Measure, Mix, Rows, Task, Whole
from stockpot.kernels import (
    BLOCK,
    NonFiniteInputError,
    OverflowedError,
    Scratch,
    Views,
    cut,
    gram_blocks,
    gram_rows,
    mix,
    mix_steps,
    wide_dtype,
)
from stockpot.measure import Array
from stockpot.methods import Mixture


class Worker:
    """Buffers are touched once and used again: fresh memory costs more than the arithmetic."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.plan = run.plan
        self.device = torch.device(run.plan.budget.device)
        self.raw = torch.empty(run.plan.budget.raw_bytes, dtype=torch.uint8)
        self.raw_view = byte_view(self.raw)
        self.stage = torch.empty(STAGE_BYTES, dtype=torch.uint8)
        self.scratches: dict[torch.dtype, Scratch] = {}
        self.allow = run.plan.job.recipe.allow_nonfinite
        self.raw_gram = run.plan.job.method.needs == "raw_gram"

    def do(self, task: Task) -> None:
        """Dispatch on the kind of task."""
        slot = self.plan.slots[task.slot]
        try:
            if isinstance(task, Copy):
                self.copy(task, slot)
            elif isinstance(task, Whole):
                self.whole(task, slot)
            elif isinstance(task, Measure):
                self.measure(task, slot)
            elif isinstance(task, Rows):
                self.rows(task, slot)
            else:
                self.mix(task, slot)
        except NonFiniteInputError as error:
            raise self.nonfinite(slot, error, 0 if isinstance(task, Whole) else task.start) from None

    def copy(self, task: Copy, slot: Slot) -> None:
        """Copy bytes of the first source; the others must be equal to it."""
        size = task.stop - task.start
        first, *others = slot.sources
        kept = self.read_bytes(first, task.start, size, 0)
        for source in others:
            other = self.read_bytes(source, task.start, size, 1)
            if not torch.equal(kept, other):
                raise errors.MismatchError(
                    f"{TORCH_NAMES.get(slot.dtype, slot.dtype)} values differ between the models",
                    tensor=slot.name,
                    file=self.path(source),
                    expected=f"those of {self.plan.inputs.checkpoints[first[0]].ref}",
                    remedy="--mismatch first takes the first model's, --exclude leaves it as the template has it",
                )
        if slot.checked and is_mergeable(slot.dtype) and not self.allow:
            bad = ~torch.isfinite(kept.view(getattr(torch, TORCH_NAMES[slot.dtype])))
            if bad.any():
                first_bad = task.start // itemsize(slot.dtype) + int(bad.to(torch.uint8).argmax())
                raise self.nonfinite(slot, NonFiniteInputError(0, first_bad), 0)
        self.run.emit(task.slot, task.start, byte_view(kept))
        self.run.count_bytes(size * len(slot.sources), size * len(slot.sources))

    def read_bytes(self, source: tuple[int, TensorInfo], start: int, size: int, place: int) -> Tensor:
        """Bytes of a source in one half of the buffer (or in the staging memory for the second)."""
        number, info = source
        if info.strides is not None:
            return self.gather(source, start + size == info.size_bytes)[start : start + size]
        half = self.stage if place else self.raw
        if half.numel() < size:
            half = torch.empty(size, dtype=torch.uint8)
        self.plan.inputs.checkpoints[number].read_into(info, start, byte_view(half[:size]))
        return half[:size]

    def gather(self, source: tuple[int, TensorInfo], last: bool) -> Tensor:
        """The dense bytes of a strided tensor, gathered once for all its pieces; ``last``: no more are to come."""
        number, info = source
        with self.run.gathering:
            dense = self.run.gathered.get((number, info.name))
            if dense is None:
                assert info.strides is not None
                window = torch.empty(info.nbytes, dtype=torch.uint8)
                self.plan.inputs.checkpoints[number].read_into(info, 0, byte_view(window))
                typed = window.view(getattr(torch, TORCH_NAMES[info.dtype]))
                shown = torch.as_strided(typed, info.shape, info.strides)
                dense = shown.contiguous().flatten().view(torch.uint8)
                self.run.gathered[(number, info.name)] = dense
            if last:
                self.run.gathered.pop((number, info.name))
        return dense

    def load(self, slot: Slot, start: int, stop: int, place: int = 0) -> Views:
        """Elements of every source on the device: rows of one tensor where all have one dtype, else typed views.

        ``place``: where in the buffer to put them.
        """
        count = stop - start
        if len({info.dtype for _, info in slot.sources}) == 1 and all(info.strides is None for _, info in slot.sources):
            item = itemsize(slot.sources[0][1].dtype)
            stride = -(-count * item // ALIGNMENT) * ALIGNMENT
            for row, (number, info) in enumerate(slot.sources):
                part = self.raw_view[place + row * stride : place + row * stride + count * item]
                self.plan.inputs.checkpoints[number].read_into(info, start * item, part)
            rows = self.raw[place : place + len(slot.sources) * stride].view(
                getattr(torch, TORCH_NAMES[slot.sources[0][1].dtype])
            )
            return rows.view(len(slot.sources), -1)[:, :count].to(self.device)
        views = []
        for source in slot.sources:
            number, info = source
            item = itemsize(info.dtype)
            size = count * item
            if info.strides is not None:
                part_bytes = self.gather(source, stop * item == info.size_bytes)[start * item : stop * item]
            else:
                self.plan.inputs.checkpoints[number].read_into(info, start * item, self.raw_view[place : place + size])
                part_bytes = self.raw[place : place + size]
                place += -(-size // ALIGNMENT) * ALIGNMENT
            views.append(part_bytes.view(getattr(torch, TORCH_NAMES[info.dtype])).to(self.device))
        return views

    def scratch(self, views: Views) -> Scratch:
        """Wide memory for these views, made at first use."""
        dtype = wide_dtype([views.dtype] if isinstance(views, Tensor) else [view.dtype for view in views])
        found = self.scratches.get(dtype)
        if found is None or found.wide.shape[0] < len(views):
            found = Scratch.create(len(views), dtype, self.device)
            self.scratches[dtype] = found
        return found

    def whole(self, task: Whole, slot: Slot) -> None:
        """Read once; measure; solve; mix."""
        if is_summed(self.plan.job, slot, self.plan.budget):
            self.whole_as_sum(task, slot)
            return
        views = self.load(slot, 0, count(slot.shape))
        grams = gram_blocks(views, self.scratch(views), self.allow, self.raw_gram)
        solution = self.solved(task, grams)
        self.run.count_bytes(_source_bytes(slot), _source_bytes(slot) // 2)
        for start, stop in self.output_pieces(slot):
            self.write_mixed(task.slot, slot, cut(views, start, stop), solution, start)
        self.run.count_bytes(0, _source_bytes(slot) - _source_bytes(slot) // 2)

    def whole_as_sum(self, task: Whole, slot: Slot) -> None:
        """The same where all models get one weight: hold the reference and the sum of the differences only."""
        total = count(slot.shape)
        dtype = getattr(torch, TORCH_NAMES[slot.sources[0][1].dtype])
        wide = wide_dtype([dtype])
        middle = -(-total * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        end = middle + -(-total * wide.itemsize // ALIGNMENT) * ALIGNMENT
        reference = self.raw[: total * dtype.itemsize].view(dtype)
        steps = self.raw[middle : middle + total * wide.itemsize].view(wide)
        grams = []
        for start in range(0, total, HELD_PIECE):
            self.check_stop()
            stop = min(start + HELD_PIECE, total)
            views = self.load(slot, start, stop, end)
            reference[start:stop].copy_(views[0])
            try:
                grams.append(gram_blocks(views, self.scratch(views), self.allow, steps=steps[start:stop]))
            except NonFiniteInputError as error:
                raise self.nonfinite(slot, error, start) from None
        solution = self.solved(task, np.concatenate(grams))
        self.run.count_bytes(_source_bytes(slot), _source_bytes(slot) // 2)
        weights = solution.mixture.weights
        scratch = self.scratch([reference])
        for start, stop in self.output_pieces(slot):
            if weights[0] == 0.0 or self.allow:
                self.write_mixed(task.slot, slot, self.load(slot, start, stop, end), solution, start)
            elif not weights[1:].any():
                only = Solution(Mixture(weights[:1]), solution.bounded)
                self.write_mixed(task.slot, slot, [reference[start:stop]], only, start)
            else:
                held, summed = reference[start:stop], steps[start:stop]

                def fill(out: Tensor, held: Tensor = held, summed: Tensor = summed) -> None:
                    mix_steps(held, summed, float(weights[1]), out, scratch, check=not solution.bounded)

                self.write_filled(task.slot, slot, stop - start, start, fill)
        self.run.count_bytes(0, _source_bytes(slot) - _source_bytes(slot) // 2)

    def solved(self, task: Whole, grams: Array) -> Solution:
        """Coefficients of a tensor that is a group of its own, from its block sums in order."""
        gram = np.zeros(grams.shape[1:])
        for one in grams:
            gram = gram + one
        group = self.plan.groups[task.group]
        self.run.store_gram(group, 0, gram)
        return self.run.solve(group, gram)

    def output_pieces(self, slot: Slot) -> Iterator[tuple[int, int]]:
        """(start, stop) of pieces that fit the staging memory."""
        total = count(slot.shape)
        step = max(BLOCK, STAGE_BYTES // itemsize(slot.dtype) // BLOCK * BLOCK)
        for start in range(0, total, step):
            self.check_stop()
            yield start, min(start + step, total)

    def measure(self, task: Measure, slot: Slot) -> None:
        """Inner products of a piece, into its group's sum."""
        views = self.load(slot, task.start, task.stop)
        self.run.add_gram(task, gram_blocks(views, self.scratch(views), self.allow, self.raw_gram))
        self.count(slot, task)

    def rows(self, task: Rows, slot: Slot) -> None:
        """Rows with coefficients of their own: measure, solve, mix."""
        columns = row_elements(slot)
        views = self.load(slot, task.start, task.stop)
        gram = gram_rows(views, columns, self.scratch(views), self.allow)
        group = self.plan.groups[task.group]
        first = task.start // columns
        self.run.store_gram(group, first, gram)
        solution = self.run.solve(group, gram, first)
        # The inner products are journaled before the tensor: a finished tensor always has them.
        self.run.rows_done(task.group)
        self.write_mixed(task.slot, slot, views, solution, task.start, columns)
        self.count(slot, task)

    def mix(self, task: Mix, slot: Slot) -> None:
        """A piece by known coefficients."""
        views = self.load(slot, task.start, task.stop)
        self.write_mixed(task.slot, slot, views, self.run.solution_of(task), task.start)
        self.count(slot, task)

    def write_mixed(
        self, number: int, slot: Slot, views: Views, solution: Solution, start: int, columns: int = 0
    ) -> None:
        """Mix into the staging memory and hand it on."""
        scratch = self.scratch(views)

        def fill(out: Tensor) -> None:
            mix(
                views,
                solution.mixture.weights,
                out,
                scratch,
                columns=columns,
                check=not (self.allow or solution.bounded),
                pass_nonfinite=self.allow,
            )

        self.write_filled(number, slot, views[0].numel(), start, fill)

    def write_filled(self, number: int, slot: Slot, elements: int, start: int, fill: Callable[[Tensor], None]) -> None:
        """Let ``fill`` write elements into the staging memory, and hand them on."""
        size = nbytes(slot.dtype, (elements,))
        stage = self.stage if size <= self.stage.numel() else torch.empty(size, dtype=torch.uint8)
        kept = stage[:size]
        out = kept.view(getattr(torch, TORCH_NAMES[slot.dtype]))
        target = out if self.device.type == "cpu" else torch.empty_like(out, device=self.device)
        try:
            fill(target)
        except NonFiniteInputError as error:
            raise self.nonfinite(slot, error, start) from None
        except OverflowedError as error:
            raise errors.NonFiniteError(
                f"a finite result does not fit {TORCH_NAMES[slot.dtype]} at index {_index(slot, start + error.index)}",
                tensor=slot.name,
                remedy="choose a wider --dtype",
            ) from None
        if target is not out:
            out.copy_(target)
        self.run.emit(number, start * itemsize(slot.dtype), byte_view(kept))

    def count(self, slot: Slot, task: Measure | Mix | Rows) -> None:
        """Progress of one piece."""
        size = sum((task.stop - task.start) * itemsize(info.dtype) for _, info in slot.sources)
        self.run.count_bytes(size, size)

    def check_stop(self) -> None:
        """Leave a long task where the run was stopped."""
        if self.run.stop.is_set():
            raise Cancelled

    def path(self, source: tuple[int, TensorInfo]) -> str:
        """The file of a source."""
        return source_path(self.plan.inputs, *source)

    def nonfinite(self, slot: Slot, error: NonFiniteInputError, start: int) -> errors.NonFiniteError:
        """The error for NaN or Inf in an input, with its place."""
        return errors.NonFiniteError(
            f"an input is not finite at index {_index(slot, start + error.index)}",
            tensor=slot.name,
            file=self.path(slot.sources[error.source]),
            remedy="leave this model out, or --allow-nonfinite passes it through",
        )


def _source_bytes(slot: Slot) -> int:
    return sum(info.size_bytes for _, info in slot.sources)


def _index(slot: Slot, flat: int) -> list[int]:
    return [int(i) for i in np.unravel_index(flat, slot.shape)] if slot.shape else []


def byte_view(tensor: Tensor) -> memoryview:
    """The memory of a CPU tensor of bytes."""
    array: Any = tensor.numpy()
    return memoryview(array)
