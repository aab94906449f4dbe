"""From a recipe to a job: the method found, every parameter checked, the roles of the inputs settled. Reads no file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stockpot import errors
from stockpot._patterns import ForeverError, require_bounded
from stockpot.checkpoint import TORCH_NAMES
from stockpot.engine._parameters import Valued, known_alone
from stockpot.engine._sections import Section, roles_of
from stockpot.measure import GRANULARITIES, Array
from stockpot.methods import Method, Mixture, get_method
from stockpot.recipe import ModelEntry, Recipe, parse_size

_CODES = {name: code for code, name in TORCH_NAMES.items()}


@dataclass(frozen=True)
class Job:
    """A recipe made definite.

    ``models``: the ingredients as typed. ``base``: the base as typed, whatever its role. ``anchored``: whether the
    base is the first input of the method. ``values``: checked parameters, per-model ones in the order of the first
    section's models; where they vary by tensor, those of no tensor in particular. ``sections``: stretches of the
    output with sources of their own, mostly one.
    """

    recipe: Recipe
    method: Method
    models: tuple[str, ...]
    base: str | None
    anchored: bool
    values: Mapping[str, object]
    granularity: str
    block_regex: str | None
    dtype: str | None
    shard_bytes: int | None
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]
    valued: Valued
    table: Mapping[str, tuple[float, ...]] | None = None
    """Weights of each tensor by name, where the recipe states them; then the method is not asked."""
    rank: int | None = None
    """Of merged adapters, the largest rank of the result."""

    def answer(self, first: Array | int, values: Mapping[str, object]) -> Mixture:
        """The method's, to inner products or to a number of inputs, with a tensor's parameters."""
        with np.errstate(all="ignore"):  # what comes of it is judged, not how
            return self.method(first, values, anchored=self.anchored)

    def require_answer(self, section: Section, values: Mapping[str, object]) -> None:
        """Raises what the method refuses whatever the weights: what arguments alone can tell."""
        if self.table is None:
            self.method.check(len(section.sources), values)

    @property
    def takes_raw(self) -> bool:
        """Whether the method is asked with inner products of the inputs themselves."""
        return self.method.takes_raw(self.anchored)

    @property
    def is_plain(self) -> bool:
        """Whether all models take part in all tensors, under their own names."""
        return self.recipe.slices is None and self.recipe.modules is None

    @property
    def is_even(self) -> bool:
        """Whether all tensors are merged from all models by the same parameters."""
        return self.is_plain and self.valued.is_constant(self.sections[0])


def resolve(recipe: Recipe, *, from_file: bool = False, lenient: bool = False, method: Method | None = None) -> Job:
    """Check a recipe against its method; raises UsageError, ParameterError or RecipeError before anything is opened.

    ``from_file``: parameters that the field's recipes must state are then required, and parameters of other methods
    are warnings instead of errors; ``lenient``: so are parameters that no method has. ``method``: instead of the one
    that the recipe names.
    """
    method = method or get_method(recipe.merge_method)
    recipe, warnings = known_alone(recipe, method, from_file=from_file, lenient=lenient)
    roles = roles_of(recipe, method)
    if not from_file:
        recipe = _stated(recipe, method, roles.sections)
        roles = roles_of(recipe, method)
    weighted = any(entry.tensor_weights for entry in recipe.models)
    overrides = tuple((one.match, one.parameters) for one in recipe.overrides)
    valued = Valued(method, overrides, from_file and not weighted)
    problems = list(valued.problems(roles.sections))
    problems += _granularity_problems(recipe, method)
    if (recipe.slices or recipe.modules) and (method.statistics is not None or method.beside):
        problems.append(errors.UsageError(f"{method.name} merges whole models", remedy="leave out slices and modules"))
    if method.beside and (varying := valued.varying(roles.sections)):
        problems.append(
            errors.UsageError(
                f"{varying[0]} of {method.name} is one for all tensors",
                got="values by layer, filter or override",
                remedy=f"state {varying[0]} once, as one value",
            )
        )
    if problems:
        raise errors.gathered(problems)
    first = roles.sections[0]
    values = _values(valued, first)
    block_regex = first.levels[-1].get("block_regex")
    _check_patterns(recipe, block_regex)
    ingredients = {member.ref for member in first.members}
    job = Job(
        recipe,
        method,
        roles.models,
        roles.base,
        roles.anchored,
        values,
        recipe.granularity or method.granularity or "tensor",
        block_regex if isinstance(block_regex, str) else None,
        _CODES[recipe.output_dtype] if recipe.output_dtype else None,
        parse_size(recipe.shard_size) if recipe.shard_size is not None else None,
        (*warnings, *roles.notes),
        roles.sections,
        valued,
        _table(method, [entry for entry in recipe.models if entry.model in ingredients]),
        recipe.rank,
    )
    for section in roles.sections:
        if valued.is_constant(section):
            job.require_answer(section, _values(valued, section))
    return job


def _granularity_problems(recipe: Recipe, method: Method) -> list[errors.StockpotError]:
    if recipe.granularity is None:
        return []
    if method.granularity is None:
        return [errors.UsageError(f"{method.name} has no granularity", got=recipe.granularity, remedy="leave it out")]
    if recipe.granularity not in GRANULARITIES:
        return [errors.unknown_name("granularity", recipe.granularity, GRANULARITIES)]
    return []


def _values(valued: Valued, section: Section) -> dict[str, object]:
    """Of no tensor in particular: where they vary, what no filter takes, at the first layer."""
    return valued.checked(valued.at(section, "", [""] * len(section.members), 0.0), section)


def _stated(recipe: Recipe, method: Method, sections: Sequence[Section]) -> Recipe:
    """With the defaults that a recipe file has to state: what is recorded can be run again."""
    if any(entry.tensor_weights for entry in recipe.models):
        return recipe
    lacking = {}
    for name in method.recipe_required:
        default = method.parameters[name].default
        stated = (
            any(name in own for own in (member.parameters, *section.levels[:-1]))
            for section in sections
            for member in section.members
        )
        if name not in recipe.parameters and not all(stated):
            lacking[name] = default[0] if isinstance(default, tuple) else default
    return recipe.model_copy(update={"parameters": {**recipe.parameters, **lacking}}) if lacking else recipe


def _table(method: Method, entries: Sequence[ModelEntry]) -> dict[str, tuple[float, ...]] | None:
    """Weights by tensor, where the models state them: all of them, for the same tensors, finite."""
    if not any(entry.tensor_weights for entry in entries):
        return None
    if method.name != "linear":
        raise errors.RecipeError(f"tensor_weights are for linear, not for {method.name}")
    names = set(entries[0].tensor_weights)
    for entry in entries:
        if set(entry.tensor_weights) != names:
            odd = sorted(names.symmetric_difference(entry.tensor_weights))
            raise errors.RecipeError("tensor_weights must name the same tensors in every model", tensor=odd[0])
        for name, weight in entry.tensor_weights.items():
            if not math.isfinite(weight):
                raise errors.RecipeError(f"a tensor weight of {entry.model} is not finite", tensor=name, got=weight)
    return {name: tuple(entry.tensor_weights[name] for entry in entries) for name in entries[0].tensor_weights}


def _check_patterns(recipe: Recipe, block_regex: object) -> None:
    policies = recipe.policies
    named = [("--only", p) for p in policies.only] + [("--exclude", p) for p in policies.exclude]
    named += [("--rename", split_rename(text)[1]) for text in policies.rename]
    named += [("overrides", one.match) for one in recipe.overrides]
    named += [("block_regex", block_regex)] if isinstance(block_regex, str) else []
    for option, pattern in named:
        require_pattern(option, pattern)


def require_pattern(option: str, pattern: str) -> None:
    """A regular expression that can be used, in a time that stays in bounds; ParameterError otherwise."""
    try:
        require_bounded(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise pattern_error(option, pattern, error) from None


def pattern_error(option: str, pattern: str, error: Exception) -> errors.ParameterError:
    """Why a regular expression cannot be used, and what to write instead."""
    return errors.ParameterError(
        f"{option} is no regular expression to use ({error})",
        got=repr(pattern),
        remedy="no repeat inside a repeat, and few .*" if isinstance(error, ForeverError) else None,
    )


def split_rename(text: str) -> tuple[str | None, str, str]:
    """``[base:|N:]REGEX=REPL`` as (who, regex, replacement); the last ``=`` divides.

    >>> split_rename("base:^bert[.]="), split_rename("2:a=b"), split_rename("x=y")
    (('base', '^bert[.]', ''), ('2', 'a', 'b'), (None, 'x', 'y'))
    """
    match = re.fullmatch(r"(?:(base|[1-9][0-9]{0,8}):)?(.+)=([^=]*)", text, re.DOTALL)
    if match is None:
        raise errors.ParameterError("--rename cannot be read", expected="[base:|N:]REGEX=REPL", got=repr(text))
    return match[1], match[2], match[3]
