"""The parts of a recipe, each with the keys that it may have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from stockpot.recipe._ref import ModelRef
from stockpot.recipe._settings import Parameters

Missing = Literal["error", "base", "average", "first"]
Mismatch = Literal["error", "base", "first"]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Patterns = Annotated[tuple[str, ...], BeforeValidator(_as_list)]


class Strict(BaseModel):
    """Data whose unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class ModelEntry(Strict):
    """One ingredient, with its own parameters."""

    model: ModelRef
    parameters: Parameters = Field(default_factory=dict)
    tensor_weights: dict[str, float] = Field(default_factory=dict)
    """Of ``linear``: the weight of each tensor by its name, used as it is, instead of one weight for all of them."""


def _as_range(value: object) -> object:
    if not isinstance(value, list | tuple) or len(value) != 2 or any(type(one) is not int for one in value):
        raise ValueError("must be two whole numbers, the first layer and the one after the last")
    first, end = value
    if first < 0:
        raise ValueError("layers are counted from 0")
    if end <= first:
        raise ValueError("must begin before it ends")
    return value


LayerRange = Annotated[tuple[int, int], BeforeValidator(_as_range)]


class SliceSource(Strict):
    """Some layers of one model, with its own parameters: those from ``layer_range[0]`` to before ``layer_range[1]``."""

    model: ModelRef
    layer_range: LayerRange
    parameters: Parameters = Field(default_factory=dict)


class Slice(Strict):
    """Neighbouring layers of the result, and the layers that each source has for them."""

    sources: tuple[SliceSource, ...] = Field(min_length=1)
    base_model: ModelRef | None = None
    parameters: Parameters = Field(default_factory=dict)

    @model_validator(mode="after")
    def _even(self) -> Slice:
        lengths = {end - first for first, end in (source.layer_range for source in self.sources)}
        if len(lengths) > 1:
            told = ", ".join(f"{source.model} {list(source.layer_range)}" for source in self.sources)
            raise ValueError(f"the sources of a slice must have equally many layers: {told}")
        return self


class Module(Strict):
    """A part of models of several parts, with sources of its own."""

    models: tuple[ModelEntry, ...] | None = Field(default=None, min_length=1)
    slices: tuple[Slice, ...] | None = Field(default=None, min_length=1)
    parameters: Parameters = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one(self) -> Module:
        if (self.models is None) == (self.slices is None):
            raise ValueError("a module has either models or slices")
        return self


class Override(Strict):
    """Parameters of the tensors whose names a regular expression is found in: they win over all others."""

    match: str = Field(min_length=1)
    parameters: Parameters = Field(min_length=1)


class Policies(Strict):
    """Which tensors take part, and what happens to those that do not correspond."""

    only: Patterns = ()
    exclude: Patterns = ()
    rename: Patterns = ()
    missing: Missing = "error"
    mismatch: Mismatch = "error"
    template: str | None = None
