"""A recipe from the arguments of a call or a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stockpot import errors
from stockpot.recipe._parts import Mismatch, Missing
from stockpot.recipe._recipe import Recipe, Ref


def build_recipe(
    method: str,
    *,
    base: Ref | None,
    models: Sequence[Ref],
    parameters: Mapping[str, Any] | None = None,
    granularity: str | None = None,
    dtype: str | None = None,
    shard_size: str | int | None = None,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rename: Sequence[str] = (),
    missing: Missing = "error",
    mismatch: Mismatch = "error",
    template: str | None = None,
    allow_nonfinite: bool = False,
    seed: int = 0,
) -> Recipe:
    """A recipe from arguments; a list given for a per-model parameter goes to the models in order."""
    if any(isinstance(one, Mapping) for one in (base, *models)):
        raise errors.UsageError("models are paths here", got="a state dict", remedy="merge_state_dicts takes those")
    if isinstance(models, str | Path):
        raise errors.UsageError("models are a list", got=repr(str(models)), remedy="put it into one")
    if not models:
        raise errors.UsageError(f"{method} needs models", expected="at least one", got=0)
    shared: dict[str, Any] = {}
    each: list[dict[str, Any]] = [{} for _ in models]
    for name, value in (parameters or {}).items():
        if isinstance(value, list | tuple) and not any(isinstance(one, Mapping) for one in value):
            if len(value) != len(models):
                raise errors.ParameterError(
                    f"{name} needs one value, or one for each model", expected=f"{len(models)} values", got=len(value)
                )
            for own, one in zip(each, value, strict=True):
                own[name] = one
        else:
            shared[name] = value
    return Recipe.from_data(
        {
            "merge_method": method,
            "base_model": None if base is None else str(base),
            "models": [{"model": str(m), "parameters": own} for m, own in zip(models, each, strict=True)],
            "parameters": shared,
            "granularity": granularity,
            "dtype": dtype,
            "shard_size": shard_size,
            "seed": seed,
            "allow_nonfinite": allow_nonfinite,
            "policies": {
                "only": list(only),
                "exclude": list(exclude),
                "rename": list(rename),
                "missing": missing,
                "mismatch": mismatch,
                "template": template,
            },
        },
        "arguments",
    )
