"""Recipe: what to do, as data. YAML in and out; unknown keys are refused; nothing is ever executed.

The format is the one that the field writes (``merge_method``, ``models``, ``base_model``, ``parameters``, ``dtype``),
strictly read, with our keys (``granularity``, ``policies``, ``shard_size``, ``seed``, ``allow_nonfinite``) beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from stockpot import errors
from stockpot.recipe._tokenizer import ChatTemplate, Tokenizer, tokenizer_owner
from stockpot.recipe._yaml import SIZE_CAP, load_yaml

LATER_KEYS = ("slices", "modules")
"""Keys of the field's format that this version knows but does not serve."""
IGNORED_PARAMETERS = ("int8_mask",)
"""Memory switches of other tools: accepted, without effect."""


def _plain_dtype(value: object) -> object:
    return value.removeprefix("torch.") if isinstance(value, str) else value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Dtype = Annotated[Literal["float64", "float32", "float16", "bfloat16"], BeforeValidator(_plain_dtype)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_as_list)]


def _scalar(value: object) -> object:
    if not isinstance(value, bool | int | float | str):
        raise ValueError(
            "must be one number, word or true/false (gradients and filters are not served by this version)"
        )
    return value


Parameters = dict[str, Annotated[Any, BeforeValidator(_scalar)]]


Ref = str | Path
Missing = Literal["error", "base", "average", "first"]
Mismatch = Literal["error", "base", "first"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class ModelEntry(_Strict):
    """One ingredient, with its own parameters."""

    model: str
    parameters: Parameters = Field(default_factory=dict)
    tensor_weights: dict[str, float] = Field(default_factory=dict)
    """Of ``linear``: the weight of each tensor by its name, used as it is, instead of one weight for all of them."""


class Policies(_Strict):
    """Which tensors take part, and what happens to those that do not correspond."""

    only: Patterns = ()
    exclude: Patterns = ()
    rename: Patterns = ()
    missing: Missing = "error"
    mismatch: Mismatch = "error"
    template: str | None = None


class Recipe(_Strict):
    """One merge.

    >>> recipe = Recipe.from_yaml("{merge_method: model_stock, base_model: b, models: [{model: x}, {model: y}]}")
    >>> recipe.merge_method, [entry.model for entry in recipe.models]
    ('model_stock', ['x', 'y'])
    """

    merge_method: str
    models: tuple[ModelEntry, ...] = Field(min_length=1)
    base_model: str | None = None
    parameters: Parameters = Field(default_factory=dict)
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    granularity: str | None = None
    rank: Annotated[int, Field(ge=1)] | None = None
    """Of merged LoRA adapters, the largest rank of the result."""
    policies: Policies = Field(default_factory=Policies)
    shard_size: str | int | None = None
    seed: int = 0
    allow_nonfinite: bool = False
    tokenizer: Tokenizer | None = None
    tokenizer_source: Annotated[str, Field(min_length=1)] | None = None
    """The short form of ``tokenizer``: its source alone."""
    chat_template: ChatTemplate | None = None

    @model_validator(mode="after")
    def _one_tokenizer(self) -> Recipe:
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise ValueError("tokenizer and tokenizer_source exclude each other")
        return self

    @property
    def output_tokenizer(self) -> Tokenizer | None:
        """What either form says of the output's tokenizer; None: the tokenizers are not looked at."""
        return self.tokenizer or (Tokenizer(source=self.tokenizer_source) if self.tokenizer_source else None)

    @property
    def output_dtype(self) -> str | None:
        """The floating dtype asked for: ``out_dtype``, else ``dtype``, else None (as the models have it)."""
        return self.out_dtype or self.dtype

    @classmethod
    def from_yaml(cls, text: str, source: str = "recipe") -> Recipe:
        """Read a recipe; RecipeError lists every problem. Never executes anything."""
        return cls.from_data(load_yaml(text, source), source)

    @classmethod
    def from_data(cls, data: object, source: str = "recipe") -> Recipe:
        """Read a recipe from a map of plain values."""
        if not isinstance(data, dict):
            raise errors.RecipeError("a recipe is a map of keys to values", file=source, got=type(data).__name__)
        problems = [f"{key} is not served by this version" for key in LATER_KEYS if key in data]
        data = {key: value for key, value in data.items() if key not in LATER_KEYS}
        recipe = None
        try:
            recipe = cls.model_validate(data)
        except ValidationError as error:
            found = error.errors()
            # A tuple with a bad item is also reported as too short.
            found = [entry for entry in found if entry["type"] != "too_short" or len(found) == 1]
            problems += [_problem(entry) for entry in found]
        if recipe is None or problems:
            first, *rest = problems
            raise errors.RecipeError(f"the recipe cannot be used: {first}", file=source, problems=rest)
        return recipe

    @classmethod
    def from_file(cls, path: str | Path) -> Recipe:
        """Read a recipe file."""
        path = Path(path)
        try:
            if not path.is_file() and path.exists():
                raise errors.RecipeError("the recipe is no file", file=str(path))
            if path.stat().st_size > SIZE_CAP:
                raise errors.RecipeError("the recipe is absurdly long", file=str(path), expected=f"{SIZE_CAP} bytes")
            text = path.read_text("utf-8")
        except FileNotFoundError:
            raise errors.NotFoundError("no such recipe", file=str(path)) from None
        except UnicodeDecodeError:
            raise errors.RecipeError("the recipe is not UTF-8 text", file=str(path)) from None
        except OSError as error:
            raise errors.UnreadableError(f"the recipe cannot be read ({error.strerror})", file=str(path)) from None
        return cls.from_yaml(text, str(path))

    def to_yaml(self) -> str:
        """The recipe as YAML, printable; reading it back gives an equal recipe."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        text = str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
        if errors.printable_lines(text) == text:
            return text
        return str(yaml.safe_dump(data, sort_keys=False))


def _problem(entry: Any) -> str:
    """One line for one of pydantic's findings, with the nearest known key where a key is unknown."""
    path = entry["loc"]
    where = ".".join(str(part) for part in path) or "recipe"
    if entry["type"] == "extra_forbidden":
        owner: type[BaseModel] = Policies if path[0] == "policies" else ModelEntry if path[0] == "models" else Recipe
        if path[0] == "tokenizer":
            owner = tokenizer_owner(path)
        known = [*owner.model_fields, *(LATER_KEYS if owner is Recipe else ())]
        close = errors.nearest(str(path[-1]), known)
        hint = f"did you mean {close}?" if close else f"known: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if entry["type"] == "missing":
        return f"the key {where!r} is missing"
    message = entry["msg"].removeprefix("Value error, ")
    if not path:
        return str(message)
    return f"{where}: {message[:1].lower()}{message[1:]}, got {entry['input']!r}"[:300]
