"""From a recipe to a job: the method found, every parameter checked, the roles of the inputs settled. Reads no file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stockpot import errors
from stockpot._patterns import ForeverError, require_bounded
from stockpot.checkpoint import TORCH_NAMES
from stockpot.engine._switches import SWITCHES, read_switches
from stockpot.measure import GRANULARITIES, Array
from stockpot.methods import Method, Mixture, all_methods, check_value, get_method
from stockpot.recipe import IGNORED_PARAMETERS, ModelEntry, Recipe, parse_size

_CODES = {name: code for code, name in TORCH_NAMES.items()}


@dataclass(frozen=True)
class Job:
    """A recipe made definite.

    ``models``: the ingredients as typed. ``base``: the base as typed, whatever its role. ``anchored``: whether the
    base is the first input of the method. ``values``: checked parameters, per-model ones in the order of ``models``.
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
    table: Mapping[str, tuple[float, ...]] | None = None
    """Weights of each tensor by name, where the recipe states them; then the method is not asked."""
    rank: int | None = None
    """Of merged adapters, the largest rank of the result."""

    def answer(self, first: Array | int, values: Mapping[str, object]) -> Mixture:
        """The method's, to inner products or to a number of inputs, with a tensor's parameters."""
        return self.method(first, values, anchored=self.anchored)

    @property
    def takes_raw(self) -> bool:
        """Whether the method is asked with inner products of the inputs themselves."""
        return self.method.takes_raw(self.anchored)


def resolve(recipe: Recipe, *, from_file: bool = False, method: Method | None = None) -> Job:
    """Check a recipe against its method; raises UsageError, ParameterError or RecipeError before anything is opened.

    ``from_file``: parameters that the field's recipes must state are then required, and parameters of other methods
    are warnings instead of errors. ``method``: instead of the one that the recipe names.
    """
    method = method or get_method(recipe.merge_method)
    recipe, warnings = _normalize(recipe, method, from_file)
    models, base, anchored, notes = _roles(recipe, method)
    if not from_file:
        recipe = _stated(recipe, method)
    values = _values(recipe, method, models, from_file)
    granularity = recipe.granularity or method.granularity or "tensor"
    if recipe.granularity is not None and method.granularity is None:
        raise errors.UsageError(f"{method.name} has no granularity", got=recipe.granularity, remedy="leave it out")
    if granularity not in GRANULARITIES:
        raise errors.unknown_name("granularity", granularity, GRANULARITIES)
    block_regex = values.pop("block_regex", None)
    values.pop("granularity", None)
    values.update(_places(method, values, [entry.model for entry in models]))
    _check_patterns(recipe, block_regex)
    method.check(len(models) + anchored, values)  # what arguments alone can tell is told before anything is opened
    return Job(
        recipe,
        method,
        tuple(entry.model for entry in models),
        base,
        anchored,
        values,
        granularity,
        block_regex if isinstance(block_regex, str) else None,
        _CODES[recipe.output_dtype] if recipe.output_dtype else None,
        parse_size(recipe.shard_size) if recipe.shard_size is not None else None,
        (*warnings, *notes),
        _table(method, models),
        recipe.rank,
    )


def _stated(recipe: Recipe, method: Method) -> Recipe:
    """With the defaults that a recipe file has to state: what is recorded can be run again."""
    lacking = {
        name: _one(method.parameters[name].default)
        for name in method.recipe_required
        if name not in recipe.parameters and any(name not in entry.parameters for entry in recipe.models)
    }
    if not lacking or any(entry.tensor_weights for entry in recipe.models):
        return recipe
    return recipe.model_copy(update={"parameters": {**recipe.parameters, **lacking}})


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


def _normalize(recipe: Recipe, method: Method, from_file: bool) -> tuple[Recipe, list[str]]:
    """Take foreign and misplaced parameters out; say so once each."""
    recipe, warnings = read_switches(recipe, method)
    known = method.parameters
    elsewhere = {name for other in all_methods().values() for name in other.parameters}.union(SWITCHES)
    granularity, rank = recipe.granularity, recipe.rank

    def keep(parameters: Mapping[str, Any], where: str) -> dict[str, Any]:
        nonlocal granularity, rank
        kept = {}
        for name, value in parameters.items():
            if name == "granularity" and method.granularity is not None:
                granularity = granularity or str(value)
            elif name in known:
                kept[name] = value
            elif name == "rank":
                if type(value) is not int or value < 1:
                    raise errors.ParameterError("rank is a whole number", expected="1 or more", got=repr(value))
                rank = value
            elif name in IGNORED_PARAMETERS:
                warnings.append(f"{name} has no effect here")
            elif from_file and name in elsewhere:
                warnings.append(f"{name} is no parameter of {method.name}: ignored")
            else:
                raise errors.unknown_name(f"parameter of {method.name}{where}", name, known)
        return kept

    entries = tuple(
        entry.model_copy(update={"parameters": keep(entry.parameters, f" at model {entry.model}")})
        for entry in recipe.models
    )
    parameters = keep(recipe.parameters, "")
    changed = recipe.model_copy(
        update={
            "merge_method": method.name,
            "models": entries,
            "parameters": parameters,
            "granularity": granularity,
            "rank": rank,
        }
    )
    return changed, list(dict.fromkeys(warnings))


def _roles(recipe: Recipe, method: Method) -> tuple[list[ModelEntry], str | None, bool, list[str]]:
    """Which entries are ingredients, and what the base is to the method."""
    base, entries, notes = recipe.base_model, list(recipe.models), []
    if method.base == "required":
        if base is None:
            raise errors.UsageError(f"{method.name} needs a base", remedy="give --base, or base_model in the recipe")
        if any(entry.model == base for entry in entries):
            entries = [entry for entry in entries if entry.model != base]
            notes.append("the base is also listed as a model: it is the anchor, not an ingredient")
        anchored = True
    elif method.base == "member":
        entries = [entry for entry in entries if entry.model != base]
        anchored = base is not None
        expected = 1 if anchored else 2
        if len(entries) != expected:
            raise errors.MethodError(
                f"{method.name} takes two inputs", expected="a base and one model, or two models",
                got=f"{len(entries)} models{' and a base' if anchored else ''}",
            )  # fmt: skip
    elif method.base == "optional":
        anchored = base is not None
        entries = [entry for entry in entries if entry.model != base]
    else:
        anchored = False
        if base is not None:
            notes.append(f"{method.name} uses no base: {base} serves as template only, never as an ingredient")
    least, most = method.models
    if len(entries) < least or (most is not None and len(entries) > most):
        wanted = f"{least} or more" if most is None else str(least) if least == most else f"{least} to {most}"
        raise errors.MethodError(
            f"{method.name} cannot work on this number of models"
            + (f": {method.why_models}" if method.why_models else ""),
            expected=f"{wanted} beside the base" if anchored else wanted,
            got=len(entries),
        )
    return entries, base, anchored, notes


def _values(recipe: Recipe, method: Method, entries: list[ModelEntry], from_file: bool) -> dict[str, object]:
    """Each parameter by precedence: the model's own, the recipe's, the default."""
    values: dict[str, object] = {}
    for name, parameter in method.parameters.items():
        if name == "granularity":
            continue
        own = [entry.parameters.get(name) for entry in entries]
        shared = recipe.parameters.get(name)
        if not parameter.per_model:
            stated = [value for value in own if value is not None]
            if stated and any(value != stated[0] for value in stated):
                raise errors.ParameterError(f"{name} of {method.name} is one value for all models", got=stated)
            value = stated[0] if stated else shared
            if value is None and parameter.required:
                raise errors.ParameterError(
                    f"{method.name} needs {name}", expected=parameter.describe(), remedy=f"give --set {name}=VALUE"
                )
            values[name] = parameter.default if value is None else check_value(method.name, parameter, value, 1)
            continue
        if from_file and name in method.recipe_required and not any(entry.tensor_weights for entry in entries):
            for entry, value in zip(entries, own, strict=True):
                if value is None and shared is None:
                    raise errors.RecipeError(f"{name} of {method.name} is not given for model {entry.model}")
        default = _one(parameter.default)
        each = [value if value is not None else shared if shared is not None else default for value in own]
        values[name] = check_value(method.name, parameter, each, len(entries))
    return values


def _places(method: Method, values: Mapping[str, object], models: Sequence[str]) -> dict[str, object]:
    """Where parameters name one of the models: its place from 0, or -1 for none."""
    found: dict[str, object] = {}
    for parameter in method.parameters.values():
        if parameter.of_model:
            name = values[parameter.name]
            found[parameter.name] = -1 if name is None else _place(method, parameter.name, str(name), models)
    return found


def _place(method: Method, parameter: str, name: str, models: Sequence[str]) -> int:
    """Of the model of that number from 1, that was typed so, or whose path alone ends so."""
    if name.isdecimal() and 1 <= int(name) <= len(models):
        return int(name) - 1
    same = [place for place, model in enumerate(models) if model == name]
    same = same or [place for place, model in enumerate(models) if Path(model).name == name]
    if len(same) != 1:
        raise errors.unknown_name(f"model ({parameter} of {method.name})", name, models)
    return same[0]


def _one(default: object) -> object:
    return default[0] if isinstance(default, tuple) else default


def _check_patterns(recipe: Recipe, block_regex: object) -> None:
    policies = recipe.policies
    named = [("--only", p) for p in policies.only] + [("--exclude", p) for p in policies.exclude]
    named += [("--rename", split_rename(text)[1]) for text in policies.rename]
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
