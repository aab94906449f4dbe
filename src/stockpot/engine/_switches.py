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

    Raises ParameterError for what is neither true nor false, or not the same wherever it stands, for columns, by which
    nothing is merged here, and for rows where another granularity is stated too.
    """
    switches = _ROWS_WHERE.get(method.name, {})
    names = {*switches, *([_COLUMNS] if "nuslerp_flatten" in switches else [])}
    found: dict[str, Any] = {}
    stated = [recipe.granularity]

    def without(parameters: Mapping[str, Any], where: str) -> dict[str, Any]:
        for name in sorted(names & parameters.keys()):
            if where.startswith(" of "):
                raise errors.UsageError(f"{name} is one for all tensors{where}", remedy="state it at the top level")
            _take(found, name, parameters[name])
        stated.append(parameters.get("granularity"))
        return {name: value for name, value in parameters.items() if name not in names}

    changed = recipe.reparametrized(without)
    on = [name for name, rows in switches.items() if name in found and found[name] is rows]
    if not on:
        return changed, []
    if found.get(_COLUMNS):
        raise errors.ParameterError(
            f"{_COLUMNS} interpolates column by column (dim 0), which is not served",
            remedy=f"leave {_COLUMNS} out (row by row), or {on[0]} (the tensor as one vector)",
        )
    if other := [one for one in stated if one not in (None, "row")]:
        raise errors.ParameterError(
            f"granularity {other[0]} contradicts {on[0]}: {str(found[on[0]]).lower()}, which means rows",
            remedy="leave out one of the two",
        )
    said = f"{on[0]} means granularity row here: an output channel, dim 0 (of the last axis elsewhere)"
    return changed.model_copy(update={"granularity": recipe.granularity or "row"}), [said]


def _take(found: dict[str, Any], name: str, value: object) -> None:
    """Keep the value of a switch, the same wherever it stands."""
    if not isinstance(value, bool) or found.setdefault(name, value) is not value:
        raise errors.ParameterError(
            f"{name} is one switch for the whole merge",
            expected="true or false, the same wherever it stands",
            got=f"{str(found[name]).lower()} and {str(value).lower()}" if isinstance(value, bool) else value,
        )
