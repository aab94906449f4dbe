"""Parameters of the field's recipes that say in their own words which elements share one set of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stockpot import errors
from stockpot.methods import Method
from stockpot.recipe import Recipe

_ROWS_WHERE = {"model_stock": {"filter_wise": True}, "nuslerp": {"nuslerp_flatten": False}}
"""By method: the parameter, and the value of it that means rows."""
_COLUMNS = "nuslerp_row_wise"
SWITCHES = (_COLUMNS, *(name for switches in _ROWS_WHERE.values() for name in switches))
"""All of them; another method's are told as such."""


def read_switches(recipe: Recipe, method: Method) -> tuple[Recipe, list[str]]:
    """The recipe with these parameters as ``granularity``, and what is to be said of it.

    Raises ParameterError for what is neither true nor false, and for columns, by which nothing is merged here.
    """
    switches = _ROWS_WHERE.get(method.name, {})
    names = {*switches, *([_COLUMNS] if "nuslerp_flatten" in switches else [])}
    found: dict[str, Any] = {}

    def without(parameters: Mapping[str, Any]) -> dict[str, Any]:
        found.update({name: value for name, value in parameters.items() if name in names})
        return {name: value for name, value in parameters.items() if name not in names}

    changed = {
        "models": tuple(one.model_copy(update={"parameters": without(one.parameters)}) for one in recipe.models),
        "parameters": without(recipe.parameters),
    }
    for name, value in found.items():
        if not isinstance(value, bool):
            raise errors.ParameterError(
                f"{name} is one switch for the whole merge", expected="true or false", got=value
            )
    on = [name for name, rows in switches.items() if name in found and found[name] is rows]
    if not on:
        return recipe.model_copy(update=changed), []
    if found.get(_COLUMNS):
        raise errors.ParameterError(
            f"{_COLUMNS} interpolates column by column (dim 0), which is not served",
            remedy=f"leave {_COLUMNS} out (row by row), or {on[0]} (the tensor as one vector)",
        )
    said = f"{on[0]} means granularity row here: an output channel, dim 0 (of the last axis elsewhere)"
    return recipe.model_copy(update={**changed, "granularity": recipe.granularity or "row"}), [said]
