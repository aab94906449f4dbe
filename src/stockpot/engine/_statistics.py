"""Files of what data say of each model's tensors: opened beside the models, and matched with the tensors by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stockpot import errors
from stockpot.checkpoint import STATISTICS, Source, TensorInfo, count, is_mergeable, open_checkpoint
from stockpot.engine._align import Alignment, Decision, Inputs, Slot, SlotStatistic, align
from stockpot.engine._job import Job
from stockpot.methods import Statistic, Statistics


def with_statistics(job: Job, inputs: Inputs) -> Inputs:
    """The inputs, and behind them the files that the method asks for, one for each model; opened by their headers."""
    wanted = job.method.statistics
    if wanted is None:
        return inputs
    found = []
    for ref in paths_of(job, wanted):
        source = open_checkpoint(ref)
        kind = _about(source).get("kind", wanted.kind)
        if kind != wanted.kind:
            raise errors.UsageError(
                f"{wanted.parameter} of {job.method.name}: the file holds something else", file=ref,
                expected=wanted.kind, got=kind, remedy=f"stockpot collect {wanted.kind} makes it",
            )  # fmt: skip
        found.append(source)
    return replace(inputs, checkpoints=(*inputs.checkpoints, *found), statistics=len(found))


def paths_of(job: Job, wanted: Statistics) -> tuple[str, ...]:
    """The files, in the order of the models."""
    paths = job.values[wanted.parameter]
    assert isinstance(paths, tuple)
    return paths


def aligned(job: Job, inputs: Inputs) -> Alignment:
    """What becomes of each tensor, and of which of them the statistics speak; every problem at once."""
    found = align(job, inputs.merged)
    wanted = job.method.statistics
    if wanted is None:
        return found
    files = [_File(source, _about(source)) for source in inputs.checkpoints[len(inputs.merged.checkpoints) :]]
    problems: list[errors.AlignmentError] = []
    decisions = list(found.decisions)
    slots = []
    for slot in found.slots:
        try:
            slots.append(_joined(inputs, wanted, files, slot) if slot.action == "merge" else slot)
        except errors.AlignmentError as error:
            problems.append(error)
            continue
        if slot.action == "merge" and not slots[-1].statistics:
            decisions.append(Decision(slot.name, wanted.parameter, "mean: no file has it"))
    if problems:
        problems[0].problems = tuple(problem.line() for problem in problems[1:])
        raise problems[0]
    plain = sum(slot.action == "merge" and not slot.statistics for slot in slots)
    if plain == sum(slot.action == "merge" for slot in slots):
        raise errors.MissingTensorError(
            f"no file of {wanted.parameter} has any tensor of the models", file=files[0].source.ref,
            expected=slots[0].name, got=", ".join([*files[0].source.tensors][:3]), remedy="collect from these models",
        )  # fmt: skip
    notes = [f"{plain} tensors have no {wanted.parameter} values: their mean is taken"] if plain else []
    return replace(found, slots=tuple(slots), decisions=tuple(decisions), notes=(*found.notes, *notes))


@dataclass(frozen=True)
class _File:
    """An opened file, and what it says of itself."""

    source: Source
    about: Mapping[str, Any]


def _joined(inputs: Inputs, wanted: Statistics, files: Sequence[_File], slot: Slot) -> Slot:
    """The tensor with its statistics: all models have them, or none."""
    first = len(inputs.merged.checkpoints) - inputs.first_model
    own = [(number - inputs.first_model, info) for number, info in slot.sources if number in inputs.models]
    having = [info.name in files[place].source.tensors for place, info in own]
    if not any(having):
        return slot
    if not all(having):
        place, info = own[having.index(False)]
        raise errors.MissingTensorError(
            f"a tensor has {wanted.parameter} values of some models only", tensor=info.name,
            file=files[place].source.ref, expected="values of every model, or of none", remedy="collect it anew",
        )  # fmt: skip
    found = tuple(_checked(wanted, files[place], first + inputs.first_model + place, slot, info) for place, info in own)
    extra = tuple(one.source for one in found) if wanted.streamed else ()
    return replace(slot, statistics=found, sources=(*slot.sources, *extra))


def _checked(wanted: Statistics, file: _File, number: int, slot: Slot, info: TensorInfo) -> SlotStatistic:
    values = file.source.tensors[info.name]
    transposed = info.name in file.about.get("transposed", ())
    size = slot.shape[0 if transposed else -1] if slot.shape else 1
    expected = slot.shape if wanted.streamed else (size, size)
    fits = values.shape == expected and (wanted.streamed or len(slot.shape) == 2)
    if not fits or not is_mergeable(values.dtype):
        raise errors.MismatchError(
            f"{wanted.parameter} values do not fit the tensor", tensor=info.name, file=file.source.ref,
            expected=f"{list(expected)}, floating", got=f"{list(values.shape)}, {values.dtype}",
            remedy="collect them from this model",
        )  # fmt: skip
    rows = file.about.get("rows", {}).get(info.name)
    return SlotStatistic((number, values), wanted.streamed, Statistic(values.shape, rows, transposed))


def statistics_bytes(slots: Sequence[Slot]) -> int:
    """Memory of a worker while it makes a tensor of statistics that are asked for whole: the models' tensors, and the
    result, in float64; one statistic as it is stored and wide, their sum, and what a decomposition takes."""
    return max(
        (
            8 * ((slot.models + 4) * count(slot.shape) + 5 * count(slot.statistics[0].about.shape))
            for slot in slots
            if slot.statistics and not slot.statistics[0].streamed
        ),
        default=0,
    )


def _about(source: Source) -> Mapping[str, Any]:
    """What a file says of how it was made; nothing, where it is not ours."""
    try:
        found = json.loads(source.parts[0].metadata.get(STATISTICS, "{}"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise errors.CheckpointError("what the file says of its statistics cannot be read", file=source.ref)
    return found
