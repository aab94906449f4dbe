"""A plan's work as a list of tasks. Workers take them in this order; no task waits for a later one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stockpot.checkpoint import TORCH_NAMES, count, nbytes
from stockpot.engine import _budget
from stockpot.engine._align import Slot
from stockpot.engine._budget import STAGE_BYTES
from stockpot.engine._plan import Group, Plan, held_bytes
from stockpot.kernels import BLOCK, DTYPES_OF_MANY, is_compiled


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes ``start`` to ``stop`` of a tensor whose sources must be equal (or is one source), copied."""

    slot: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Whole:
    """A tensor that fits the buffer: read once, measured, mixed, written."""

    slot: int
    group: int


@dataclass(frozen=True, slots=True)
class Measure:
    """Elements of a tensor whose inner products go into its group; ``ticket`` is the place in the group's sum."""

    slot: int
    group: int
    start: int
    stop: int
    ticket: int


@dataclass(frozen=True, slots=True)
class Mix:
    """Elements of a tensor to combine, by fixed weights or by those of its group (-1: fixed)."""

    slot: int
    group: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Whole rows of a tensor, each with coefficients of its own: read once, measured, mixed, written."""

    slot: int
    group: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Small:
    """Tensors that are groups of their own, so small that they are worked on together: as ``Whole`` each."""

    slots: tuple[int, ...]
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Make:
    """A tensor of an element-wise method: measured as its rule asks, made and written."""

    slot: int
    group: int


@dataclass(frozen=True, slots=True)
class Look:
    """A tensor that a method looks at before it makes any."""

    slot: int
    group: int


Task = Copy | Whole | Measure | Mix | Rows | Small | Make | Look
SMALL_ELEMENTS = BLOCK
SMALL_TENSORS = 256
"""At most, so that both workers have some."""


def is_copy(slot: Slot) -> bool:
    """Whether a tensor's bytes are copied without arithmetic."""
    source = slot.sources[0][1]
    return slot.action == "same" or (slot.action == "mix" and len(slot.sources) == 1 and source.dtype == slot.dtype)


def measuring_tasks(plan: Plan) -> list[Task]:
    """Inner products alone, of all groups: each input is read once."""
    tasks: list[Task] = []
    nothing: frozenset[str] = frozenset()
    for places in _gathered(plan, nothing, nothing):
        if len(places) > 1:
            tasks.append(Small(tuple(plan.groups[place].slots[0] for place in places), places))
            continue
        group, ticket = plan.groups[places[0]], 0
        for number in group.slots:
            slot = plan.slots[number]
            for a, b in _pieces(count(slot.shape), piece_elements(plan, slot)):
                tasks.append(Rows(number, places[0], a, b) if group.rows else Measure(number, places[0], a, b, ticket))
                ticket += 1
    return tasks


def make_tasks(plan: Plan, done: frozenset[str], measured: frozenset[str]) -> list[Task]:
    """All tasks, without tensors ``done`` and without measuring groups ``measured`` by an earlier run.

    Comparisons of integer tensors come first, so that what they refuse is refused early.
    """
    tasks: list[Task] = []
    slots = plan.slots
    copies = [n for n, slot in enumerate(slots) if is_copy(slot) or not nbytes(slot.dtype, slot.shape)]
    copied = set(copies)
    for number in sorted(copies, key=lambda n: slots[n].action != "same"):
        if slots[number].name not in done:
            size = nbytes(slots[number].dtype, slots[number].shape)
            tasks += [Copy(number, a, b) for a, b in _pieces(size, STAGE_BYTES)]
    fixed = [n for n, slot in enumerate(slots) if slot.action == "mix" and n not in copied]
    for number in fixed:
        if slots[number].name not in done:
            step = piece_elements(plan, slots[number])
            tasks += [Mix(number, -1, a, b) for a, b in _pieces(count(slots[number].shape), step)]
    if plan.job.method.is_elementwise:
        return tasks + _makes(plan, done)
    for places in _gathered(plan, done, measured):
        if len(places) > 1:
            tasks.append(Small(tuple(plan.groups[place].slots[0] for place in places), places))
            continue
        group = plan.groups[places[0]]
        tasks += _group_tasks(plan, places[0], group, done, group.name in measured)
    return tasks


def _makes(plan: Plan, done: frozenset[str]) -> list[Task]:
    """The largest first: each is one worker's, and none is to be alone with the last."""
    open_groups = [(group.slots[0], place) for place, group in enumerate(plan.groups)]
    makes = [Make(slot, place) for slot, place in open_groups if plan.slots[slot].name not in done]
    return [*sorted(makes, key=lambda task: -count(plan.slots[task.slot].shape))]


def _gathered(plan: Plan, done: frozenset[str], measured: frozenset[str]) -> Iterator[tuple[int, ...]]:
    """Positions of all groups in order, neighbours that are small and alike together."""
    held: list[int] = []
    kind: object = None
    room = tensors = 0
    for place, group in enumerate(plan.groups):
        own = None if group.name in measured else _small_kind(plan, group, done)
        if own is None:
            if held:
                yield tuple(held)
            held, kind = [], None
            yield (place,)
            continue
        slot = plan.slots[group.slots[0]]
        size = nbytes(slot.dtype, slot.shape)
        if held and (own != kind or size > room or not tensors):
            yield tuple(held)
            held = []
        if not held:
            kind, room, tensors = own, min(STAGE_BYTES, plan.budget.raw_bytes // len(slot.sources)), SMALL_TENSORS
        held.append(place)
        room -= size
        tensors -= 1
    if held:
        yield tuple(held)


def _small_kind(plan: Plan, group: Group, done: frozenset[str]) -> object:
    """What small tensors must share to be worked on together; None for others."""
    slot = plan.slots[group.slots[0]]
    dtypes = tuple(TORCH_NAMES.get(info.dtype) for _, info in slot.sources)
    fits = (
        plan.budget.device == "cpu"
        and is_compiled()
        and len(group.slots) == 1
        and not group.rows
        and slot.name not in done
        and 0 < count(slot.shape) <= SMALL_ELEMENTS
        and {*dtypes, TORCH_NAMES.get(slot.dtype)} <= {*DTYPES_OF_MANY}
        and all(info.strides is None for _, info in slot.sources)
        and not plan.job.recipe.allow_nonfinite
    )
    return (dtypes, slot.dtype, slot.setting) if fits else None


def _group_tasks(plan: Plan, place: int, group: Group, done: frozenset[str], measured: bool) -> Iterator[Task]:
    slots = plan.slots
    open_slots = [n for n in group.slots if slots[n].name not in done]
    if not open_slots:
        return
    if group.rows:
        for number in open_slots:
            slot = slots[number]
            for a, b in _pieces(count(slot.shape), piece_elements(plan, slot)):
                yield Rows(number, place, a, b)
        return
    if plan.job.method.uses_gram and not measured:
        if len(group.slots) == 1 and held_bytes(slots[group.slots[0]]) <= plan.budget.raw_bytes:
            yield Whole(group.slots[0], place)
            return
        ticket = 0
        for number in group.slots:
            for a, b in _pieces(count(slots[number].shape), piece_elements(plan, slots[number])):
                yield Measure(number, place, a, b, ticket)
                ticket += 1
    for number in open_slots:
        for a, b in _pieces(count(slots[number].shape), piece_elements(plan, slots[number])):
            yield Mix(number, place, a, b)


def piece_elements(plan: Plan, slot: Slot) -> int:
    """Elements per piece."""
    return _budget.piece_elements(plan.job, slot, plan.values_of(slot), plan.budget.raw_bytes)


def _pieces(total: int, size: int) -> Sequence[tuple[int, int]]:
    """(start, stop) pairs that cover 0 to total; one empty pair for an empty tensor."""
    return [(start, min(start + size, total)) for start in range(0, total, size)] or [(0, 0)]
