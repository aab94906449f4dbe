"""How much memory each worker gets, and how large a piece of a tensor that allows."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stockpot import errors
from stockpot.checkpoint import count, itemsize
from stockpot.engine._align import Slot
from stockpot.engine._job import Job
from stockpot.kernels import BLOCK, BYTES_OF_KEY, CHUNK
from stockpot.methods import Form, Rule

STAGE_BYTES = 2 << 20
"""Of a piece of output."""
STAGES = 2
"""Pieces of output for each worker: one to compute while the other is written."""
VIEWED_BYTES = 224 << 20
"""Of inputs that all workers of an element-wise method of several passes leave in sight."""
ALIGNMENT = 64
MOST_WORKERS = 8
SCRATCH_BYTES = 512
"""Of the inner products, for each pair of inputs."""


ROW_SCRATCH_BYTES = 48
"""Of a rule that sees whole rows, for each element of a piece, beside 8 for each input: at most 45 measured."""


@dataclass(frozen=True)
class Budget:
    """Memory of the workers: ``raw_bytes`` of input buffer and ``fixed_bytes`` of scratch and staging for each."""

    workers: int
    raw_bytes: int
    fixed_bytes: int
    device: str
    key_bytes: int = 0
    """Of what each may keep of magnitudes while it selects among them."""
    viewed_bytes: int = 0
    """Of inputs that each sees where they are, to go through them again: pages of files, in nobody's budget."""

    @property
    def total_bytes(self) -> int:
        """All buffers together."""
        return self.workers * (self.raw_bytes + self.fixed_bytes + self.key_bytes + self.viewed_bytes)


def step_elements(job: Job, slot: Slot, values: Mapping[str, object]) -> int:
    """Elements that pieces of a tensor must be multiples of: a block, or a whole row that has its own coefficients."""
    if job.method.is_elementwise and slot.action == "merge":
        return _unit_elements(rule_of(job, values, slot), slot)
    return row_elements(slot) if job.granularity == "row" and slot.action == "merge" else BLOCK


def piece_elements(job: Job, slot: Slot, values: Mapping[str, object], raw_bytes: int) -> int:
    """Elements per piece: about STAGE_BYTES of output, within the buffer, and a multiple of the reduction step."""
    step = step_elements(job, slot, values)
    room = (raw_bytes - ALIGNMENT * len(slot.sources)) // sum(itemsize(info.dtype) for _, info in slot.sources)
    wanted = min(room, STAGE_BYTES // itemsize(slot.dtype))
    return max(step, wanted // step * step)


def row_scratch_bytes(job: Job, slots: Sequence[Slot], settings: Sequence[Mapping[str, object]], budget: Budget) -> int:
    """Memory of all workers beside their buffers while they make the tensors that take most of it, by rules that see
    whole rows: a piece of a vector is all of it."""
    if not job.method.is_elementwise:
        return 0
    found = []
    for slot in slots:
        values = settings[slot.setting]
        if slot.action == "merge" and count(slot.shape) and rule_of(job, values, slot).unit == "row":
            size = min(piece_elements(job, slot, values, budget.raw_bytes), count(slot.shape))
            found.append(size * (ROW_SCRATCH_BYTES + 8 * len(slot.sources) + itemsize(slot.dtype)))
    return sum(sorted(found)[-budget.workers :])


def _unit_elements(rule: Rule, slot: Slot) -> int:
    """What a rule must see together; random numbers are counted from multiples of CHUNK."""
    total = max(count(slot.shape), 1)
    if rule.unit == "tensor":
        return total
    rows = math.lcm(row_elements(slot), CHUNK)
    return BLOCK if rule.unit == "block" else min(-(-BLOCK // rows) * rows, total)


def rule_of(job: Job, values: Mapping[str, object], slot: Slot) -> Rule:
    """What makes a tensor by an element-wise method; a refusal is told with its name."""
    told = tuple(one.about for one in slot.statistics)
    form = Form(slot.name, slot.shape, slot.models - job.anchored, job.anchored, job.recipe.seed, told)
    try:
        return job.method.rule(form, values)
    except errors.MethodError as error:
        raise errors.MethodError(
            error.what, tensor=slot.name, expected=error.expected, got=error.got, remedy=error.remedy
        ) from None


def row_elements(slot: Slot) -> int:
    """Elements of one row (dim 0); all of a 0-d or 1-D tensor."""
    return max(count(slot.shape[1:] if len(slot.shape) > 1 else slot.shape), 1)


def element_bytes(slot: Slot) -> int:
    """Bytes of all inputs for one element."""
    return sum(max(itemsize(info.dtype), 1) for _, info in slot.sources)


def fit(
    job: Job,
    slots: Sequence[Slot],
    settings: Sequence[Mapping[str, object]],
    *,
    memory: int,
    workers: int | None,
    device: str = "cpu",
) -> Budget:
    """Share the budget; fewer workers where it is small; ParameterError where not even one can work."""
    inputs = max((len(slot.sources) for slot in slots), default=1)
    fixed = STAGES * STAGE_BYTES + SCRATCH_BYTES * inputs * inputs
    least = max(
        (
            min(step_elements(job, slot, settings[slot.setting]), count(slot.shape)) * element_bytes(slot)
            + ALIGNMENT * len(slot.sources)
            for slot in slots
        ),
        default=BLOCK,
    )
    if workers is not None and workers < 1:
        raise errors.ParameterError("--workers must be at least 1", got=workers)
    wanted = workers or max(1, min(os.cpu_count() or 1, MOST_WORKERS))
    while wanted > 1 and memory // wanted < fixed + least:
        wanted -= 1
    is_repeated = job.method.is_elementwise and job.method.passes > 1
    elements = max((count(slot.shape) for slot in slots), default=0)
    keys = min(memory // wanted // 4, BYTES_OF_KEY * inputs * elements) if is_repeated else 0
    raw = memory // wanted - fixed - keys
    if raw < least:
        raise errors.ParameterError(
            "--memory is too small for these inputs", expected=f"at least {-(-(fixed + least) >> 20) + 1}MiB",
            got=f"{memory >> 20}MiB",
        )  # fmt: skip
    sizes = [count(slot.shape) * element_bytes(slot) + ALIGNMENT * len(slot.sources) for slot in slots]
    most = max(max(sizes, default=least), min(sum(sizes), inputs * STAGE_BYTES))
    viewed = min(VIEWED_BYTES // wanted, sum(sizes)) if is_repeated and device == "cpu" else 0
    return Budget(wanted, min(raw, max(most, least)), fixed, device, keys, viewed)
