"""Inner products that a merge wrote beside its output, for whoever asks about the same inputs again."""

from __future__ import annotations

import json

import numpy as np

from stockpot import errors
from stockpot.checkpoint import Source, local_path, open_local, require_readable
from stockpot.engine._job import resolve
from stockpot.engine._plan import Plan
from stockpot.engine._provenance import PROVENANCE, RUN, identities
from stockpot.engine._sinks import GEOMETRY
from stockpot.engine._sums import SUMS, file_sum, read_sums
from stockpot.measure import Array, unpack
from stockpot.recipe import Recipe


def stored_grams(out: str, plan: Plan) -> tuple[dict[str, Array], str]:
    """Inner products of every group of the plan; or none, and why they cannot be used.

    They can where the inputs are the same files in the same order (header digest, size, time and inode of each), the
    merge measured each tensor by itself, and the file is the one that the output's sums speak of.
    """
    folder = local_path(out)
    if not (folder / GEOMETRY).is_file():
        raise errors.NotFoundError(
            f"there is no {GEOMETRY}", file=str(folder), remedy="give the folder that a Model Stock merge has written"
        )
    try:
        for name in (PROVENANCE, RUN, SUMS, GEOMETRY):
            require_readable(folder / name)
        record = json.loads((folder / PROVENANCE).read_text("utf-8"))
        inputs = json.loads((folder / RUN).read_text("utf-8"))["inputs"]
        sums, _ = read_sums((folder / SUMS).read_bytes())
        job = resolve(Recipe.from_data(record["recipe"], f"{folder}/{PROVENANCE}"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, errors.StockpotError) as error:
        return {}, f"its records cannot be read ({type(error).__name__})"
    if inputs != [identities(checkpoint) for checkpoint in plan.inputs.checkpoints]:
        return {}, "it was made from other inputs, or they have changed"
    if job.granularity != "tensor":
        return {}, f"it was measured by {job.granularity}"
    if not job.is_plain:
        return {}, "it was made of slices or modules"
    if job.takes_raw:
        return {}, f"{job.method.name} measured the models themselves, not what each learned"
    if file_sum(folder / GEOMETRY) != sums.get(GEOMETRY):
        return {}, "its inner products are not those that were written"
    source = open_local(GEOMETRY, folder / GEOMETRY)
    missing = [
        group.name for group in plan.groups if not _holds(source, group.name, len(plan.slots[group.slots[0]].sources))
    ]
    if missing:
        return {}, f"it does not hold {missing[0]}"
    return _read(source, plan), ""


def _holds(source: Source, name: str, size: int) -> bool:
    """Whether the inner products of so many models are there under a name."""
    info = source.tensors.get(name)
    return info is not None and (info.dtype, info.nbytes) == ("F64", size * (size + 1) // 2 * 8)


def _read(source: Source, plan: Plan) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for group in plan.groups:
        info = source.tensors[group.name]
        data = bytearray(info.nbytes)
        source.read_into(info, 0, memoryview(data))
        found[group.name] = unpack(np.frombuffer(data), len(plan.slots[group.slots[0]].sources))
    return found
