"""Recipe: what to do, as data. YAML in and out; unknown keys are refused; nothing is ever executed.

The format is the one that the field writes (``merge_method``, ``models``, ``slices``, ``modules``, ``base_model``,
``parameters``, ``dtype``), strictly read, with our keys (``granularity``, ``overrides``, ``policies``, ``shard_size``,
``seed``, ``allow_nonfinite``) beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from stockpot import errors
from stockpot.recipe._parts import ModelEntry, Module, Override, Policies, Slice, SliceSource, Strict
from stockpot.recipe._problems import in_order, key_problem, value_problem
from stockpot.recipe._ref import ModelRef
from stockpot.recipe._settings import Parameters
from stockpot.recipe._tokenizer import ChatTemplate, Tokenizer, renamed_source, tokenizer_owner
from stockpot.recipe._yaml import SIZE_CAP, load_yaml

IGNORED_PARAMETERS = ("int8_mask",)
"""Memory switches of other tools: accepted, without effect."""
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""What a document may be called: it becomes a folder."""
_PARTS: dict[str, type[Strict]] = {
    "models": ModelEntry, "slices": Slice, "sources": SliceSource, "modules": Module, "overrides": Override,
    "policies": Policies,
}  # fmt: skip
Change = Callable[[Mapping[str, Any], str], dict[str, Any]]
"""Parameters, and whose they are, as other parameters."""


def _plain_dtype(value: object) -> object:
    return value.removeprefix("torch.") if isinstance(value, str) else value


Dtype = Annotated[Literal["float64", "float32", "float16", "bfloat16"], BeforeValidator(_plain_dtype)]
Ref = str | Path


class Recipe(Strict):
    """One merge.

    >>> recipe = Recipe.from_yaml("{merge_method: model_stock, base_model: b, models: [{model: x}, {model: y}]}")
    >>> recipe.merge_method, [entry.model for entry in recipe.models]
    ('model_stock', ['x', 'y'])
    """

    merge_method: str
    models: tuple[ModelEntry, ...] = ()
    slices: tuple[Slice, ...] | None = Field(default=None, min_length=1)
    modules: dict[str, Module] | None = Field(default=None, min_length=1)
    base_model: ModelRef | None = None
    parameters: Parameters = Field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    granularity: str | None = None
    rank: Annotated[int, Field(ge=1)] | None = None
    """Of merged LoRA adapters, the largest rank of the result."""
    policies: Policies = Field(default_factory=Policies)
    shard_size: str | int | None = None
    seed: int = 0
    allow_nonfinite: bool = False
    name: Annotated[str, Field(pattern=f"^{NAME}$")] | None = None
    """What other documents of the same file call its result."""
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

    @model_validator(mode="after")
    def _one_kind(self) -> Recipe:
        found = [key for key in ("models", "slices", "modules") if getattr(self, key)]
        if len(found) > 1:
            raise ValueError(f"a recipe has one of models, slices and modules, got {' and '.join(found)}")
        if not found:
            raise ValueError("the key 'models' is missing or empty (or slices, or modules)")
        return self

    @property
    def output_dtype(self) -> str | None:
        """The floating dtype asked for: ``out_dtype``, else ``dtype``, else None (as the models have it)."""
        return self.out_dtype or self.dtype

    @property
    def refs(self) -> tuple[str, ...]:
        """Every model that is named, once, in order; the base first."""
        return tuple(dict.fromkeys(self._refs()))

    def _refs(self) -> Iterator[str]:
        if self.base_model is not None:
            yield self.base_model
        holders: list[Recipe | Module] = [self, *(self.modules or {}).values()]
        for holder in holders:
            for entry in holder.models or ():
                yield entry.model
            for one in holder.slices or ():
                if one.base_model is not None:
                    yield one.base_model
                for source in one.sources:
                    yield source.model

    def renamed(self, change: Callable[[str], str]) -> Recipe:
        """The same with other names for the models."""

        def named(entry: Any) -> Any:
            return entry.model_copy(update={"model": change(entry.model)})

        def sliced(one: Slice) -> Slice:
            base = None if one.base_model is None else change(one.base_model)
            return one.model_copy(update={"base_model": base, "sources": tuple(map(named, one.sources))})

        base = None if self.base_model is None else change(self.base_model)
        update = {"base_model": base, "tokenizer": self.tokenizer and self.tokenizer.renamed(change)}
        if self.tokenizer_source is not None:
            update["tokenizer_source"] = renamed_source(self.tokenizer_source, change)
        return self._with(named, sliced).model_copy(update=update)

    def reparametrized(self, change: Change) -> Recipe:
        """The same with other parameters: ``change`` is given those of each place, and words for the place."""

        def of(holder: Any, where: str) -> Any:
            return holder.model_copy(update={"parameters": change(holder.parameters, where)})

        def sliced(one: Slice) -> Slice:
            sources = tuple(of(source, f" at model {source.model}") for source in one.sources)
            return of(one, " of a slice").model_copy(update={"sources": sources})  # type: ignore[no-any-return]

        found = self._with(lambda entry: of(entry, f" at model {entry.model}"), sliced)
        modules = found.modules and {name: of(one, f" of module {name}") for name, one in found.modules.items()}
        overrides = tuple(of(one, f" of override {one.match}") for one in found.overrides)
        return of(found, "").model_copy(update={"modules": modules, "overrides": overrides})  # type: ignore[no-any-return]

    def _with(self, entry: Callable[[ModelEntry], ModelEntry], sliced: Callable[[Slice], Slice]) -> Recipe:
        """The same with other entries and slices, wherever they stand."""

        def changed(holder: Any) -> dict[str, Any]:
            return {
                "models": holder.models and tuple(map(entry, holder.models)),
                "slices": holder.slices and tuple(map(sliced, holder.slices)),
            }

        modules = self.modules and {name: one.model_copy(update=changed(one)) for name, one in self.modules.items()}
        return self.model_copy(update={**changed(self), "modules": modules})

    @classmethod
    def from_yaml(cls, text: str, source: str = "recipe") -> Recipe:
        """Read a recipe; RecipeError lists every problem. Never executes anything."""
        documents = load_yaml(text, source)
        if len(documents) != 1:
            raise errors.RecipeError("a recipe is one YAML document", file=source, got=f"{len(documents)} documents")
        return cls.from_data(documents[0], source)

    @classmethod
    def from_data(cls, data: object, source: str = "recipe") -> Recipe:
        """Read a recipe from a map of plain values."""
        recipe, problems, _ = read(data)
        if recipe is None or problems:
            raise unusable(problems, source)
        return recipe

    @classmethod
    def from_file(cls, path: str | Path) -> Recipe:
        """Read a recipe file."""
        return cls.from_yaml(text_of(path), str(path))

    def to_yaml(self) -> str:
        """The recipe as YAML, printable; reading it back gives an equal recipe."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        text = str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
        if errors.printable_lines(text) == text:
            return text
        return str(yaml.safe_dump(data, sort_keys=False))


_HOMES: dict[str, type[Strict]] = {**_PARTS, "the top level": Recipe}


def text_of(path: str | Path) -> str:
    """The text of a recipe file."""
    path = Path(path)
    try:
        if not path.is_file() and path.exists():
            raise errors.RecipeError("the recipe is no file", file=str(path))
        if path.stat().st_size > SIZE_CAP:
            raise errors.RecipeError("the recipe is absurdly long", file=str(path), expected=f"{SIZE_CAP} bytes")
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise errors.NotFoundError("no such recipe", file=str(path)) from None
    except UnicodeDecodeError:
        raise errors.RecipeError("the recipe is not UTF-8 text", file=str(path)) from None
    except OSError as error:
        raise errors.UnreadableError(f"the recipe cannot be read ({error.strerror})", file=str(path)) from None


def unusable(problems: list[str], source: str) -> errors.RecipeError:
    """The error for a recipe with these problems."""
    first, *rest = problems
    return errors.RecipeError(f"the recipe cannot be used: {first}", file=source, problems=rest)


def read(data: object, *, lenient: bool = False) -> tuple[Recipe | None, list[str], list[str]]:
    """(recipe, problems, warnings) of a map of plain values; ``lenient``: unknown keys are left out and warned of."""
    if not isinstance(data, dict):
        return None, [f"a recipe is a map of keys to values, got {type(data).__name__}"], []
    problems: list[str] = []
    warnings: list[str] = []
    try:
        return Recipe.model_validate(data), problems, warnings
    except ValidationError as error:
        found = error.errors()
    unknown = [_problem(entry) for entry in found if entry["type"] == "extra_forbidden"]
    if lenient and unknown:
        for entry in found:
            if entry["type"] == "extra_forbidden":
                data = _without(data, entry["loc"])
        recipe, others, more = read(data)
        return recipe, problems + others, [f"ignored: {line}" for line in unknown] + more
    return None, problems + [_problem(entry) for entry in in_order(found)], warnings


def _without(data: Any, path: tuple[Any, ...]) -> Any:
    """A copy of nested values without the one at that path."""
    first, *rest = path
    if isinstance(data, list):
        return [_without(one, tuple(rest)) if n == first else one for n, one in enumerate(data)]
    if rest:
        return {key: _without(one, tuple(rest)) if key == first else one for key, one in data.items()}
    return {key: one for key, one in data.items() if str(key) != str(first)}


def _problem(entry: Any) -> str:
    """One line for one of pydantic's findings."""
    path = entry["loc"]
    if entry["type"] != "extra_forbidden":
        return value_problem(entry)
    owner: type[BaseModel] = next((_PARTS[key] for key in reversed(path[:-1]) if key in _PARTS), Recipe)
    if path[0] == "tokenizer" and len(path) > 1:
        owner = tokenizer_owner(path)
    return key_problem(path, owner, _HOMES)
