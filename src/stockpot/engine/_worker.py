"""One worker: its buffers, and what it does for each kind of task."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from stockpot import errors
from stockpot.checkpoint import TORCH_NAMES, TensorInfo, View, count, is_mergeable, itemsize, nbytes, read_dense
from stockpot.engine._align import Slot, source_path
from stockpot.engine._budget import ALIGNMENT, STAGE_BYTES, row_elements
from stockpot.engine._device import device_of
from stockpot.engine._execute import Bytes, Cancelled, Run
from stockpot.engine._make import look, make
from stockpot.engine._schedule import Copy, Look, Make, Measure, Mix, Rows, Small, Task, Whole
from stockpot.kernels import (
    BLOCK,
    LostPagesError,
    Many,
    NonFiniteInputError,
    OverflowedError,
    Row,
    cut,
    first_nonfinite,
    gram_blocks,
    gram_many,
    gram_rows,
    is_compiled,
    mix,
    mix_many,
)
from stockpot.measure import Array
from stockpot.methods import Mixture

DROP_BYTES = 4 << 20
"""Viewed bytes after which a worker drops its views, where they are not seen again."""
MOST_VIEWED = 32
"""Inputs that are seen in place. A view's edges are whole large pages: of more inputs they come to more memory than the
budget, and copying then costs little beside the inner products."""


class Worker:
    """Buffers are touched once and used again: fresh memory costs more than the arithmetic."""

    def __init__(self, run: Run, number: int) -> None:
        self.run = run
        self.plan = run.plan
        self.device = device_of(run.plan.budget.device, number)
        self.raw = self.device.allocate(run.plan.budget.raw_bytes)
        self.raw_address = self.raw.ctypes.data
        self.allow = run.plan.job.recipe.allow_nonfinite
        self.raw_gram = run.plan.job.takes_raw
        inputs = max((len(slot.sources) for slot in run.plan.slots), default=0)
        self.views = run.plan.budget.device == "cpu" and is_compiled() and inputs <= MOST_VIEWED
        self.viewed: dict[int, dict[tuple[str, int], TensorInfo]] = {}
        self.viewed_bytes = 0
        self.most_viewed = max(DROP_BYTES, run.plan.budget.viewed_bytes)

    def do(self, task: Task) -> None:
        """Do a task, on the device."""
        with self.device.computing():
            self._do(task)

    def _do(self, task: Task) -> None:
        """Dispatch on the kind of task."""
        if isinstance(task, Small):
            if not self.small(task):
                for number, group in zip(task.slots, task.groups, strict=True):
                    self._do(Whole(number, group))
            return
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
            elif isinstance(task, Make):
                make(self, task, slot)
            elif isinstance(task, Look):
                look(self, task, slot)
            else:
                self.mix(task, slot)
        except NonFiniteInputError as error:
            raise self.nonfinite(slot, error, 0 if isinstance(task, Whole | Make | Look) else task.start) from None
        except LostPagesError:
            raise self.lost(slot) from None
        finally:
            self.drop_views()

    def copy(self, task: Copy, slot: Slot) -> None:
        """Copy bytes of the first source; the others must be equal to it."""
        size = task.stop - task.start
        first, *others = slot.sources
        room = self.run.output.room(task.slot, task.start, size)
        stage = self.run.output.stage() if room is None else None
        kept = self.read_bytes(first, task.start, size, self.raw if stage is None else stage.data, room)
        for source in others:
            if not np.array_equal(kept, self.read_bytes(source, task.start, size, self.raw)):
                raise errors.MismatchError(
                    f"{TORCH_NAMES.get(slot.dtype, slot.dtype)} values differ between the models",
                    tensor=slot.name,
                    file=self.path(source),
                    expected=f"those of {self.plan.inputs.checkpoints[first[0]].ref}",
                    remedy="--mismatch first takes the first model's, --exclude leaves it as the template has it",
                )
        if slot.checked and is_mergeable(slot.dtype) and not self.allow:
            at = first_nonfinite(Row(TORCH_NAMES[slot.dtype], kept))
            if at >= 0:
                raise self.nonfinite(slot, NonFiniteInputError(0, task.start // itemsize(slot.dtype) + at), 0)
        if room is None:
            self.run.output.put((task.slot,), task.start, kept.data, stage)
        else:
            if kept.base is not room.base:  # a strided tensor was gathered elsewhere
                room[:] = kept
            self.run.output.made(task.slot)
        self.run.count_bytes(size * len(slot.sources), size * len(slot.sources))

    def read_bytes(
        self, source: tuple[int, TensorInfo], start: int, size: int, room: Bytes, wanted: Bytes | None = None
    ) -> Bytes:
        """Bytes of a source, in ``room`` where it is large enough; in ``wanted`` where that is given."""
        room = room if wanted is None else wanted
        number, info = source
        if info.strides is not None:
            return self.gather(source, start + size == info.size_bytes)[start : start + size]
        part = room[:size] if room.size >= size else np.empty(size, dtype=np.uint8)
        self.plan.inputs.checkpoints[number].read_into(info, start, part.data)
        return part

    def gather(self, source: tuple[int, TensorInfo], last: bool) -> Bytes:
        """The dense bytes of a strided tensor, gathered once for all its pieces; ``last``: no more are to come."""
        number, info = source
        with self.run.gathering:
            dense = self.run.gathered.get((number, info.name))
            if dense is None:
                dense = read_dense(self.plan.inputs.checkpoints[number], info)
                self.run.gathered[(number, info.name)] = dense
            if last:
                self.run.gathered.pop((number, info.name))
        return dense

    def drop_views(self) -> None:
        """Views are part of our resident memory until they are dropped, some of them together."""
        if self.viewed_bytes < self.most_viewed:
            return
        for number, infos in self.viewed.items():
            self.plan.inputs.checkpoints[number].drop_views([*infos.values()])
        self.viewed.clear()
        self.viewed_bytes = 0

    def view(self, number: int, info: TensorInfo, start: int, size: int) -> View | None:
        """Bytes where the page cache holds them, for the C program."""
        found = self.plan.inputs.checkpoints[number].view(info, start, size) if self.views else None
        if found is None or found.address % itemsize(info.dtype):
            return None
        seen = self.viewed.setdefault(number, {})
        if (info.name, start) not in seen:
            seen[info.name, start] = info
            self.viewed_bytes += size
        return found

    def load(self, slot: Slot, start: int, stop: int) -> list[Row]:
        """Elements of every source: seen where they are, or read; on the device."""
        rows = []
        place = 0
        for source in slot.sources:
            number, info = source
            item = itemsize(info.dtype)
            size = (stop - start) * item
            if info.strides is not None:
                part = self.gather(source, stop * item == info.size_bytes)[start * item : stop * item]
                row = Row(TORCH_NAMES[info.dtype], part)
            elif (view := self.view(number, info, start * item, size)) is not None:
                row = Row(TORCH_NAMES[info.dtype], *view)
            else:
                part = self.raw[place : place + size]
                self.plan.inputs.checkpoints[number].read_into(info, start * item, part.data)
                row = Row(TORCH_NAMES[info.dtype], part, self.raw_address + place)
                place += -(-size // ALIGNMENT) * ALIGNMENT
            rows.append(self.device.placed(row))
        return rows

    def whole(self, task: Whole, slot: Slot) -> None:
        """Read once; measure; solve; mix."""
        rows = self.load(slot, 0, count(slot.shape))
        size = sum(info.moved_bytes for _, info in slot.sources)
        gram = self.total(task, self.gram(rows))
        if self.run.only_measure:
            self.run.count_bytes(size, size)
            return
        mixture = self.run.solve(self.plan.groups[task.group], gram)
        self.run.count_bytes(size, size // 2)
        for start, stop in self.output_pieces(slot):
            self.write_mixed(task.slot, slot, cut(rows, start, stop), mixture, start)
        self.run.count_bytes(0, size - size // 2)

    def small(self, task: Small) -> bool:
        """Tensors together, in few calls; False, with nothing done, where they must be worked on one by one."""
        slots = [self.plan.slots[number] for number in task.slots]
        dtypes = tuple(TORCH_NAMES[info.dtype] for _, info in slots[0].sources)
        addresses = np.empty((len(slots), len(dtypes)), dtype=np.uint64)
        held: list[View] = []  # a file stays mapped as long as there is a view of it
        try:
            for place, slot in enumerate(slots):
                for column, (number, info) in enumerate(slot.sources):
                    view = self.view(number, info, 0, info.nbytes)
                    if view is None:
                        return False
                    held.append(view)
                    addresses[place, column] = view.address
            counts = np.array([count(slot.shape) for slot in slots], dtype=np.int64)
            many = Many(dtypes, addresses, counts)
            grams = gram_many(many, raw=self.raw_gram) if self.plan.job.method.uses_gram else None
            if grams is None and self.plan.job.method.uses_gram:
                return False
            read = sum(info.nbytes for slot in slots for _, info in slot.sources)
            if self.run.only_measure and grams is not None:
                self.run.sink.store_grams([self.plan.groups[number] for number in task.groups], grams)
                self.run.count_bytes(read, read)
                return True
            weights = self.run.solve_many(task.groups, grams)
            stage = self.run.output.stage()
            if not mix_many(many, weights, TORCH_NAMES[slots[0].dtype], stage.address):
                self.run.output.give_back(stage)
                return False
        except LostPagesError:
            return False
        finally:
            self.drop_views()
        size = sum(nbytes(slot.dtype, slot.shape) for slot in slots)
        self.run.output.put(task.slots, 0, stage.data[:size].data, stage)
        self.run.count_bytes(read, read)
        return True

    def gram(self, rows: list[Row]) -> Array:
        """Inner products of blocks, as the method needs them."""
        return gram_blocks(rows, raw=self.raw_gram, allow_nonfinite=self.allow)

    def total(self, task: Whole, grams: Array) -> Array:
        """Inner products of a tensor that is a group of its own, from its block sums in order; kept."""
        gram = np.zeros(grams.shape[1:])
        for one in grams:
            gram = gram + one
        self.run.store_gram(self.plan.groups[task.group], 0, gram)
        return gram

    def output_pieces(self, slot: Slot) -> Iterator[tuple[int, int]]:
        """(start, stop) of pieces that fit the staging memory."""
        total = count(slot.shape)
        step = max(BLOCK, STAGE_BYTES // itemsize(slot.dtype) // BLOCK * BLOCK)
        for start in range(0, total, step):
            self.check_stop()
            yield start, min(start + step, total)

    def measure(self, task: Measure, slot: Slot) -> None:
        """Inner products of a piece, into its group's sum."""
        self.run.add_gram(task, self.gram(self.load(slot, task.start, task.stop)))
        self.count(slot, task)

    def rows(self, task: Rows, slot: Slot) -> None:
        """Rows with coefficients of their own: measure, solve, mix."""
        columns = row_elements(slot)
        rows = self.load(slot, task.start, task.stop)
        gram = gram_rows(rows, columns, raw=self.raw_gram, allow_nonfinite=self.allow)
        group = self.plan.groups[task.group]
        first = task.start // columns
        self.run.store_gram(group, first, gram)
        if self.run.only_measure:
            self.count(slot, task)
            return
        mixture = self.run.solve(group, gram, first)
        # The inner products are journaled before the tensor: a finished tensor always has them.
        self.run.rows_done(task.group)
        self.write_mixed(task.slot, slot, rows, mixture, task.start, columns)
        self.count(slot, task)

    def mix(self, task: Mix, slot: Slot) -> None:
        """A piece by known coefficients."""
        rows = self.load(slot, task.start, task.stop)
        self.write_mixed(task.slot, slot, rows, self.run.solution_of(task), task.start)
        self.count(slot, task)

    def write_mixed(
        self, number: int, slot: Slot, rows: list[Row], mixture: Mixture, start: int, columns: int = 0
    ) -> None:
        """Mix into the staging memory and hand it on."""

        def fill(out: Row) -> None:
            try:
                mix(rows, mixture.weights, out, columns=columns, pass_nonfinite=self.allow)
            except NonFiniteInputError as error:
                raise self.nonfinite(slot, error, start) from None

        self.write(number, slot, start, len(rows[0]), fill)

    def write(self, number: int, slot: Slot, start: int, elements: int, fill: Callable[[Row], None]) -> None:
        """Have elements of a tensor made in the staging memory, and hand them on."""
        size = nbytes(slot.dtype, (elements,))
        offset = start * itemsize(slot.dtype)
        room = self.run.output.room(number, offset, size)
        stage = self.run.output.stage() if room is None else None
        if room is not None:
            kept, address = room, room.ctypes.data
        elif stage is not None and size <= STAGE_BYTES:
            kept, address = stage.data[:size], stage.address
        else:
            kept, address = np.empty(size, dtype=np.uint8), 0
        out = Row(TORCH_NAMES[slot.dtype], kept, address, far=room is not None)
        target = self.device.room(out)
        try:
            fill(target)
        except OverflowedError as error:
            raise errors.NonFiniteError(
                f"a finite result does not fit {TORCH_NAMES[slot.dtype]} at index {_index(slot, start + error.index)}",
                tensor=slot.name,
                remedy="choose a wider --dtype",
            ) from None
        self.device.fetch(target, out)
        if room is None:
            self.run.output.put((number,), offset, kept.data, stage)
        else:
            self.run.output.made(number)

    def count(self, slot: Slot, task: Measure | Mix | Rows) -> None:
        """Progress of one piece."""
        size = sum((task.stop - task.start) * itemsize(info.output_dtype) for _, info in slot.sources)
        self.run.count_bytes(size, size)

    def count_elements(self, slot: Slot, elements: int, *, is_last: bool) -> None:
        """Progress of a piece that was gone through, for the last time or not."""
        size = sum(elements * itemsize(info.output_dtype) for _, info in slot.sources)
        self.run.count_bytes(size, size if is_last else 0)

    def is_seen(self, number: int, info: TensorInfo) -> bool:
        """Whether the input's elements can be seen where they are."""
        return (
            bool(info.nbytes) and info.strides is None and self.view(number, info, 0, itemsize(info.dtype)) is not None
        )

    def check_stop(self) -> None:
        """Leave a long task where the run was stopped."""
        if self.run.stop.is_set():
            raise Cancelled

    def path(self, source: tuple[int, TensorInfo]) -> str:
        """The file of a source."""
        return source_path(self.plan.inputs, *source)

    def lost(self, slot: Slot) -> errors.StockpotError:
        """The error for pages that were there when the file was opened: reading them tells which file, and why."""
        for number, info in slot.sources:
            for start in range(0, info.nbytes, STAGE_BYTES):
                part = np.empty(min(STAGE_BYTES, info.nbytes - start), dtype=np.uint8)
                self.plan.inputs.checkpoints[number].read_into(info, start, part.data)
        return errors.RunError(
            "an input could not be read for a moment", tensor=slot.name, remedy="run again: the merge goes on"
        )

    def nonfinite(self, slot: Slot, error: NonFiniteInputError, start: int) -> errors.NonFiniteError:
        """The error for NaN or Inf in an input, with its place."""
        return errors.NonFiniteError(
            f"an input is not finite at index {_index(slot, start + error.index)}",
            tensor=slot.name,
            file=self.path(slot.sources[error.source]),
            remedy="leave this model out (merge passes it through with --allow-nonfinite)",
        )


def _index(slot: Slot, flat: int) -> list[int]:
    return [int(i) for i in np.unravel_index(flat, slot.shape)] if slot.shape else []
