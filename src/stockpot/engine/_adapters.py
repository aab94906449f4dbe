"""Merging adapters into one adapter: which inputs are such, and what becomes of each tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stockpot import errors
from stockpot.adapters import AdapterSum, is_adapter, read_adapter
from stockpot.checkpoint import Source, is_mergeable
from stockpot.engine._align import Alignment, Inputs, Slot
from stockpot.engine._job import Job
from stockpot.engine._watch import grouping
from stockpot.measure import Array
from stockpot.methods import Mixture

WHAT = "adapters are merged as products of their factors"


def require_models(models: Sequence[Source]) -> None:
    """None of them may be an adapter."""
    for source in models:
        if is_adapter(source) or (source.files and any(".lora_A." in name for name in source.tensors)):
            raise errors.AdapterError(
                "an adapter is no model", file=source.ref,
                remedy="write BASE+ADAPTER for the model that it makes of its base, ADAPTER being its folder",
            )  # fmt: skip


def as_adapters(job: Job, base: Source | None, models: Sequence[Source]) -> AdapterSum | None:
    """The merge of the models where they are LoRA adapters; None where they are none; raises where only some are."""
    if base is not None:
        require_models([base])
    if not models or not all(map(is_adapter, models)):
        require_models(models)
        if job.rank is not None:
            raise errors.UsageError("rank is for merging LoRA adapters", got=job.rank, remedy="leave it out")
        return None
    if job.method.is_elementwise:
        raise errors.MethodError(
            f"{job.method.name} works element by element, and an adapter holds factors", remedy="merge BASE+ADAPTER"
        )
    if job.takes_raw:
        raise errors.MethodError(
            f"{job.method.name} needs the weights themselves, and an adapter has differences",
            remedy="merge BASE+ADAPTER",
        )
    if job.granularity == "row":
        raise errors.UsageError(f"{WHAT}: rows cannot differ", got="row", remedy="use tensor, block or model")
    if not job.is_even:
        raise errors.UsageError(
            f"{WHAT}: all of them by the same parameters", remedy="leave out slices, modules, gradients and filters"
        )
    policies = job.recipe.policies
    if policies.only or policies.exclude or policies.rename or job.table is not None:
        raise errors.UsageError(f"{WHAT}: all of them, under their own names", got="--only, --exclude or --rename")
    if job.shard_bytes is not None:
        raise errors.UsageError("an adapter is one file", got="--shard-size", remedy="leave it out")
    read = [read_adapter(source) for source in models]
    if job.anchored:
        for adapter in read:
            if adapter.replaced:
                raise errors.AdapterError(
                    f"{job.method.name} needs the base of a tensor that an adapter has whole",
                    tensor=next(iter(adapter.replaced)), file=adapter.source.ref,
                    remedy="merge BASE+ADAPTER, or take linear",
                )  # fmt: skip

    elif any(adapter.replaced for adapter in read) and not job.method.uses_gram:
        total = float(np.sum(job.answer(len(models), job.values).weights))
        if abs(total - 1.0) > 1e-9:
            raise errors.MethodError(
                "weights that do not sum to one would scale what an adapter has whole", expected=1.0, got=total,
                remedy="leave normalize=false out, or merge BASE+ADAPTER",
            )  # fmt: skip

    def mixing(gram: Array) -> Mixture:
        return job.answer(gram if job.method.uses_gram else len(models) + job.anchored, job.values)

    return AdapterSum(read, mixing, grouping(job), job.rank)


def alignment_of(job: Job, inputs: Inputs) -> Alignment:
    """Every tensor of the merged adapter, to be written as it is."""
    (source,) = inputs.checkpoints
    slots = tuple(
        Slot(name, info.shape, job.dtype if job.dtype and is_mergeable(info.dtype) else info.output_dtype, "mix",
             ((0, info),), (1.0,))
        for name, info in source.tensors.items()
    )  # fmt: skip
    notes = ("the base is not read: adapters are differences",) if job.base is not None else ()
    return Alignment(slots, {}, 0, (), {}, notes, (job.values,))
