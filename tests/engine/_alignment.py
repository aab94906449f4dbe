"""State dicts aligned in memory, and what to ask of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import stockpot
from stockpot import engine

State = Mapping[str, Tensor]


def aligned(method: str, base: State | None, models: Sequence[State], **policies: Any) -> engine.Alignment:
    """Align state dicts under some policies; ``dtype`` is the output's."""
    names = [f"model {number}" for number in range(1, len(models) + 1)]
    dtype = policies.pop("dtype", None)
    recipe = stockpot.Recipe.from_data(
        {
            "merge_method": method,
            "base_model": None if base is None else "base",
            "models": [{"model": name} for name in names],
            "dtype": dtype,
            "policies": policies,
        }
    )
    states = [*([("base", base)] if base is not None else []), *zip(names, models, strict=True)]
    sources = tuple(engine.MemorySource(state, name) for name, state in states)
    return engine.align(engine.resolve(recipe), engine.Inputs(sources, base is not None))


def decided(alignment: engine.Alignment) -> dict[str, tuple[str, str]]:
    """Tensor -> (policy, action)."""
    return {decision.tensor: (decision.policy, decision.action) for decision in alignment.decisions}


def slots(alignment: engine.Alignment) -> dict[str, engine.Slot]:
    """Output tensor by name."""
    return {slot.name: slot for slot in alignment.slots}


def used(slot: engine.Slot) -> list[int]:
    """Numbers of the inputs that a tensor is made of."""
    return [number for number, _ in slot.sources]


def state(*names: str, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (2, 3)) -> dict[str, Tensor]:
    """Tensors of one shape by these names."""
    return {name: torch.ones(shape, dtype=dtype) for name in names}
