"""What a checkpoint or a mixture holds, as digests: equal digests, equal bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from stockpot import errors
from stockpot.checkpoint import Source
from stockpot.engine._plan import Plan

_PIECE_BYTES = 8 << 20


def file_digest(path: str) -> str:
    """XXH3-128 of all bytes of a file. Cost: reading it once."""
    digest, piece = xxhash.xxh3_128(), bytearray(_PIECE_BYTES)
    try:
        with Path(path).open("rb", buffering=0) as stream:
            while size := stream.readinto(piece):
                digest.update(memoryview(piece)[:size])
    except OSError as error:
        raise errors.RunError(f"reading failed ({error.strerror})", file=path) from error
    return str(digest.hexdigest())


def memory_digest(source: Source) -> str:
    """Digest of tensors in memory: names, forms and bytes."""
    digest = xxhash.xxh3_128()
    for name, info in source.tensors.items():
        digest.update(json.dumps([name, info.dtype, info.shape]).encode())
        data = np.empty(info.nbytes, dtype=np.uint8)
        source.read_into(info, 0, data.data)
        digest.update(data.data)
    digest.update(json.dumps(dict(source.aliases)).encode())
    return str(digest.hexdigest())


def mixture_digest(plan: Plan, digest_of: Callable[[Source], str]) -> str:
    """Digest of what a plan makes, without making it: the inputs' contents, their coefficients, forms and policies.

    Where the coefficients do not depend on the inputs, order, doubles and inputs of weight zero do not matter: other
    words for the same mixture have the same digest.
    """
    inputs = [digest_of(source) for source in plan.inputs.checkpoints]
    job = plan.job
    how: dict[str, Any]
    if job.method.uses_gram:
        # The method is pure: its inputs and parameters stand for the coefficients.
        how = {
            "method": job.method.name,
            "values": plan.alignment.settings,
            "granularity": job.granularity,
            "block_regex": job.block_regex,
            "inputs": inputs,
        }
    elif job.table is not None:
        models = [inputs[number] for number in plan.inputs.models]
        how = {"table": {name: sorted(zip(models, own, strict=True)) for name, own in job.table.items()}}
    else:
        members = inputs if job.anchored else [inputs[number] for number in plan.inputs.models]
        weights: dict[str, float] = {}
        for member, weight in zip(members, job.answer(len(members), job.values).weights.tolist(), strict=True):
            weights[member] = weights.get(member, 0.0) + weight
        how = {"weights": sorted((digest, weight) for digest, weight in weights.items() if weight)}
    tensors = [
        [slot.name, slot.dtype, slot.shape, slot.action]
        + [
            [inputs[number], info.name]
            for number, info in sorted(slot.sources, key=lambda source: inputs[source[0]])
            if slot.action != "merge" or info.name != slot.name  # who is mixed is said above; renamed tensors are not
        ]
        for slot in plan.slots
    ]
    content = {**how, "tensors": tensors, "aliases": dict(plan.alignment.aliases)}
    return str(xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, default=str).encode()))
