"""From the words of a command line to a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from stockpot import errors
from stockpot.methods import all_methods
from stockpot.recipe import YAML_ERRORS, Graph, Recipe, build_recipe

_POLICIES = ("only", "exclude", "rename", "missing", "mismatch", "template")


def recipe_from_arguments(
    models: Sequence[str],
    method: str | None,
    base: str | None,
    settings: Sequence[str],
    changes: Mapping[str, Any],
    *,
    lenient: bool = False,
) -> tuple[Graph, bool]:
    """(recipe, whether it came from a file): one positional ending in .yaml without ``--method`` is a recipe.

    Of several documents, what is changed is the result's.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    parameters = parse_settings(settings)
    if method is not None:
        return Graph((build_recipe(method, base=base, models=models, parameters=parameters, **given),)), False
    if len(models) != 1 or not models[0].endswith((".yaml", ".yml")):
        raise errors.UsageError(
            "neither a method nor a recipe",
            expected="--method NAME with models, or one RECIPE.yaml",
            got=" ".join(models[:3]),
        )
    if base is not None:
        raise errors.UsageError("--base does not go with a recipe", remedy="write base_model into the recipe")
    return changed(Graph.from_file(models[0], lenient=lenient), parameters, given), True


def changed(graph: Graph, parameters: Mapping[str, Any], given: Mapping[str, Any]) -> Graph:
    """The documents with top-level values of the result replaced by those of the command line."""
    if graph.problem is not None or not (parameters or given):
        return graph
    return replace(graph, recipes=(*graph.parts, _changed(graph.result, parameters, given)))


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` pairs, values read as YAML."""
    found: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise errors.ParameterError("--set cannot be read", expected="KEY=VALUE", got=repr(text))
        try:
            found[key.strip().replace("-", "_")] = yaml.safe_load(value)
        except YAML_ERRORS:
            raise errors.ParameterError("--set cannot be read: its value is not plain YAML", got=repr(text)) from None
    return found


def _is_per_model(recipe: Recipe, name: str, value: Sequence[object]) -> bool:
    """Whether a list is one value for each model; else it is a gradient, or values by name."""
    known = all_methods().get(recipe.merge_method.replace("-", "_"))
    per_model = known is None or name not in known.parameters or known.parameters[name].per_model
    return per_model and not any(isinstance(one, Mapping) for one in value)


def _changed(recipe: Recipe, parameters: Mapping[str, Any], given: Mapping[str, Any]) -> Recipe:
    """The recipe with top-level values replaced by those of the command line."""
    data = recipe.model_dump()
    entries = [dict(entry.parameters) for entry in recipe.models]
    for name, value in parameters.items():
        if isinstance(value, list) and recipe.models and _is_per_model(recipe, name, value):
            if len(value) != len(entries):
                raise errors.ParameterError(
                    f"{name} needs one value, or one for each model", expected=f"{len(entries)} values", got=len(value)
                )
            for own, one in zip(entries, value, strict=True):
                own[name] = one
        else:
            data["parameters"][name] = value
    data["models"] = (
        []
        if not recipe.models
        else [entry.model_copy(update={"parameters": own}) for entry, own in zip(recipe.models, entries, strict=True)]
    )
    for key, value in given.items():
        if key == "dtype":
            data |= {"dtype": value, "out_dtype": None}
        elif key in _POLICIES:
            data["policies"][key] = value
        else:
            data[key] = value
    return Recipe.from_data(data, "command line")
