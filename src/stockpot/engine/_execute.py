"""The one loop: workers take tasks in order; each reads, computes, writes. No method and no format is known here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stockpot import errors
from stockpot.checkpoint import nbytes
from stockpot.engine._output import Output
from stockpot.engine._plan import Group, Plan
from stockpot.engine._records import Records
from stockpot.engine._schedule import Copy, Look, Make, Measure, Mix, Rows, Small, Task, Whole
from stockpot.engine._sinks import Sink
from stockpot.kernels import catching_lost_pages
from stockpot.measure import Array
from stockpot.methods import Mixture, repeated

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from one thread."""
POLL_SECONDS = 0.1
Bytes = NDArray[np.uint8]
_NO_GRAM = np.zeros(())


class Cancelled(Exception):
    """Another worker failed, or the user stopped the run."""


@dataclass
class _GroupState:
    """The running sum of a group's inner products, added in ticket order; then its coefficients."""

    pending: int = 0
    total: Array | None = None
    next_ticket: int = 0
    waiting: dict[int, Array] = field(default_factory=dict)
    solution: Mixture | None = None
    rows_left: int = 0


class Run:
    """State shared by the workers of one execution."""

    def __init__(
        self, plan: Plan, tasks: Sequence[Task], sink: Sink, records: Records, *, only_measure: bool = False
    ) -> None:
        self.plan = plan
        self.only_measure = only_measure
        self.tasks = tasks
        self.sink = sink
        self.records = records
        self.stop = threading.Event()
        self.bytes_done = 0
        self.bytes_before = 0
        """Of what is done, what was before these tasks."""
        self.bytes_read = 0
        self.gathering = threading.Lock()
        self.gathered: dict[tuple[int, str], Bytes] = {}
        self._turn = threading.Condition()
        self._next = 0
        self._failures: list[tuple[int, BaseException]] = []
        self.output = Output(plan, sink, records, self._wait_on)
        self._groups: dict[int, _GroupState] = {}
        self.looks: dict[int, Array] = {}
        self.survey: Array | None = None
        """What a look at all tensors came to, before."""
        self._answers: dict[tuple[int, int], Mixture] = {}
        for task in tasks:
            if isinstance(task, Measure):
                self._groups.setdefault(task.group, _GroupState()).pending += 1
            elif isinstance(task, Rows):
                self._groups.setdefault(task.group, _GroupState()).rows_left += 1

    @property
    def total_bytes(self) -> int:
        """What there is to do, for progress."""
        return self.bytes_before + sum(_task_bytes(self.plan, task) for task in self.tasks)

    def preset(self, group: int, gram: Array) -> None:
        """Inner products known from an earlier run."""
        self._groups[group] = _GroupState(solution=self.solve(self.plan.groups[group], gram))

    def take(self) -> tuple[int, Task] | None:
        """The next task, or None when there is none or the run was stopped."""
        with self._turn:
            if self.stop.is_set() or self._next >= len(self.tasks):
                return None
            self._next += 1
            return self._next - 1, self.tasks[self._next - 1]

    def fail(self, number: int, error: BaseException) -> None:
        """Remember a failure and stop everybody."""
        with self._turn:
            if not isinstance(error, Cancelled):
                self._failures.append((number, error))
            self.stop.set()
            self._turn.notify_all()

    def cancel(self) -> None:
        """Stop everybody."""
        with self._turn:
            self.stop.set()
            self._turn.notify_all()

    def failure(self) -> BaseException | None:
        """The failure of the earliest task."""
        return min(self._failures, key=lambda found: found[0])[1] if self._failures else None

    def count_bytes(self, read: int, done: int) -> None:
        """For progress and the report."""
        with self._turn:
            self.bytes_read += read
            self.bytes_done += done

    def add_gram(self, task: Measure, grams: Array) -> None:
        """Add the block sums of a piece to its group's, when its turn has come; solve when all are in."""
        state = self._groups[task.group]
        group = self.plan.groups[task.group]
        with self._turn:
            state.waiting[task.ticket] = grams
            # Whoever brings the next ticket adds all that follow it: nobody waits, and the order is kept.
            while (found := state.waiting.pop(state.next_ticket, None)) is not None:
                total = np.zeros(found.shape[1:]) if state.total is None else state.total
                for gram in found:
                    total = total + gram
                state.total = total
                state.next_ticket += 1
            state.pending -= 1
            if state.pending or state.total is None:
                return
        self.store_gram(group, 0, state.total)
        if self.only_measure:
            return
        solution = self.solve(group, state.total)
        with self._turn:
            state.solution = solution
            self._turn.notify_all()

    def store_gram(self, group: Group, first_row: int, gram: Array) -> None:
        """Keep inner products beside the output."""
        self.sink.store_gram(group, first_row, gram)
        if not group.rows:
            self.sink.finish_gram(group)

    def solve(self, group: Group, gram: Array, first_row: int = 0) -> Mixture:
        """Ask the method for coefficients; its refusal is told with the group's name."""
        mixture = self._answer(group, gram)
        if group.rows:
            self.records.add_rows(group, first_row, mixture)
        else:
            self.records.add(group, mixture)
        return mixture

    def _answer(self, group: Group, gram: Array) -> Mixture:
        """What a method answers that looks at nothing but parameters and the number of inputs is asked once."""
        if self.plan.job.method.uses_gram or self.plan.job.table is not None:
            return solve(self.plan, group, gram)
        slot = self.plan.slots[group.slots[0]]
        key = (len(slot.sources), slot.setting)
        if key not in self._answers:
            self._answers[key] = solve(self.plan, group, _NO_GRAM)
        return self._answers[key]

    def solve_many(self, numbers: Sequence[int], grams: Array | None) -> Array:
        """Weights of groups that are worked on together, of one setting, one row for each; recorded."""
        groups = [self.plan.groups[number] for number in numbers]
        if self.plan.job.table is not None:
            table = self.plan.job.table
            mixture = Mixture(np.array([table[group.name] for group in groups]))
        elif grams is None:
            mixture = repeated(self._answer(groups[0], _NO_GRAM), len(groups))
        else:
            self.sink.store_grams(groups, grams)
            try:
                values = self.plan.values_of(self.plan.slots[groups[0].slots[0]])
                mixture = self.plan.job.answer(grams, values)
            except errors.MethodError:
                for group, gram in zip(groups, grams, strict=True):
                    solve(self.plan, group, gram)
                raise
        self.records.add_many(groups, mixture)
        return mixture.weights

    def made(self, group: Group, facts: Mapping[str, object]) -> None:
        """A rule has made a group's tensor."""
        self.records.add_facts(group, facts)

    def rows_done(self, number: int) -> None:
        """A piece of a row group is through."""
        state = self._groups[number]
        group = self.plan.groups[number]
        with self._turn:
            state.rows_left -= 1
            if state.rows_left:
                return
        self.records.finish_rows(group)
        self.sink.finish_gram(group)

    def solution_of(self, task: Mix) -> Mixture:
        """Coefficients of a tensor, waited for where its group is still being measured."""
        if task.group < 0:
            return Mixture(np.array(self.plan.slots[task.slot].weights))
        with self._turn:
            state = self._groups.setdefault(task.group, _GroupState())
            if not self.plan.job.method.uses_gram and state.solution is None:
                state.solution = self.solve(self.plan.groups[task.group], _NO_GRAM)
            while state.solution is None:
                self._wait_on(self._turn)
            return state.solution

    def _wait_on(self, turn: threading.Condition) -> None:
        """Until somebody has changed something; Cancelled when the run was stopped."""
        if self.stop.is_set():
            raise Cancelled
        turn.wait(POLL_SECONDS)


def solve(plan: Plan, group: Group, gram: Array) -> Mixture:
    """Coefficients of one group from its inner products (ignored by methods that need none)."""
    if plan.job.table is not None:
        return Mixture(np.array(plan.job.table[group.name]))
    slot = plan.slots[group.slots[0]]
    first = gram if plan.job.method.uses_gram else len(slot.sources)
    if not np.isfinite(gram).all():
        raise errors.MethodError(
            "inner products of the weights overflow float64", tensor=group.name,
            remedy="scale the inputs down, or take a method without them (linear, task_arithmetic, ties)",
        )  # fmt: skip
    try:
        return plan.job.answer(first, plan.values_of(slot))
    except errors.MethodError as error:
        raise errors.MethodError(
            error.what, tensor=group.name, expected=error.expected, got=error.got, remedy=error.remedy
        ) from None


def execute(run: Run, progress: Progress | None = None) -> None:
    """Work through all tasks; raises the failure of the earliest one. KeyboardInterrupt stops the workers first."""
    from stockpot.engine._worker import Worker

    def work(worker: Worker) -> None:
        while (taken := run.take()) is not None:
            number, task = taken
            try:
                worker.do(task)
            except BaseException as error:
                run.fail(number, error)
                return

    total = run.total_bytes
    threads = [
        threading.Thread(target=work, args=(Worker(run, number),), name=f"stockpot-{number}", daemon=True)
        for number in range(min(run.plan.budget.workers, max(len(run.tasks), 1)))
    ]
    try:
        with catching_lost_pages():
            _work(run, threads, progress, total)
    finally:
        for source in run.plan.inputs.checkpoints:
            source.close()
    failure = run.failure()
    if failure is not None:
        raise failure
    if progress is not None:
        progress(total, total)


def _work(run: Run, threads: Sequence[threading.Thread], progress: Progress | None, total: int) -> None:
    try:
        for thread in threads:
            _start(thread)
        for thread in threads:
            while thread.is_alive():
                thread.join(POLL_SECONDS)
                if progress is not None:
                    progress(run.bytes_done, total)
    except BaseException:
        run.cancel()
        raise
    finally:
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def _start(thread: threading.Thread) -> None:
    try:
        thread.start()
    except RuntimeError:
        raise errors.RunError(
            "the system gives no more threads",
            remedy="give fewer --workers, or allow more memory and processes (ulimit -v, -u)",
        ) from None


def _task_bytes(plan: Plan, task: Task) -> int:
    if isinstance(task, Small):
        return sum(info.size_bytes for number in task.slots for _, info in plan.slots[number].sources)
    slot = plan.slots[task.slot]
    if isinstance(task, Whole | Make | Look):
        return sum(info.size_bytes for _, info in slot.sources)
    if isinstance(task, Copy):
        return (task.stop - task.start) * len(slot.sources)
    return sum(nbytes(info.dtype, (task.stop - task.start,)) for _, info in slot.sources)
