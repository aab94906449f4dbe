"""What a recipe may say of one parameter: a value, a gradient over layers, or either for some tensors alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator

from stockpot import errors

Scalar: TypeAlias = bool | int | float | str
Setting: TypeAlias = Any
"""As the recipe has it: a scalar, a list of scalars, ``{value, filter}``, or a list of such mappings."""
EVERYTHING = "*"
"""The filter that every name passes, as none does."""
_KEYS = ("value", "filter")


def checked_setting(value: object) -> Setting:
    """The same value where it is a setting; ValueError says what of it is not."""
    if isinstance(value, list | tuple) and value and all(isinstance(one, Mapping) for one in value):
        for one in value:
            _check_case(one)
    elif isinstance(value, Mapping):
        _check_case(value)
    else:
        _check_value(value)
    return value


def _check_case(case: Mapping[Any, Any]) -> None:
    for key in case:
        if key not in _KEYS:
            close = errors.nearest(str(key), _KEYS)
            raise ValueError(
                f"unknown key {str(key)!r}; " + (f"did you mean {close}?" if close else "known: value, filter")
            )
    if "value" not in case:
        raise ValueError("a filter needs a value beside it: {filter: mlp, value: 0.5}")
    if not isinstance(case.get("filter", ""), str | None):
        raise ValueError("a filter must be a part of tensor names, as text")
    _check_value(case["value"])


def _check_value(value: object) -> None:
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("a gradient needs values")
        if any(isinstance(one, Mapping) for one in value):
            raise ValueError("must be values alone, or {filter, value} alone")
        if not all(isinstance(one, Scalar) for one in value):
            raise ValueError("a gradient must be numbers, words or true/false")
        if any(isinstance(one, str) for one in value) != all(isinstance(one, str) for one in value):
            raise ValueError("a gradient must be of one kind")
    elif not isinstance(value, Scalar):
        raise ValueError("must be a number, word or true/false, a list of them over layers, or {filter, value}")


Parameters = dict[str, Annotated[Setting, BeforeValidator(checked_setting)]]


def cases_of(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """(filter, value) of a setting in order, the filter ``*`` where it has none."""
    found = setting if isinstance(setting, list | tuple) and isinstance(setting[0], Mapping) else [setting]
    for one in found:
        if isinstance(one, Mapping):
            yield one.get("filter") or EVERYTHING, one["value"]
        else:
            yield EVERYTHING, one


def is_constant(setting: Setting) -> bool:
    """Whether it is one value, whatever the tensor."""
    return not isinstance(setting, list | tuple | Mapping)


def scalars_of(setting: Setting) -> Iterator[Scalar]:
    """Every value that is written in a setting."""
    for _, value in cases_of(setting):
        yield from value if isinstance(value, list | tuple) else [value]


def value_at(setting: Setting, name: str, place: float) -> Scalar | None:
    """The value for a tensor: of the first case whose filter is a part of its name; None where there is no such case.

    ``place``: 0 in the first of the layers, 1 in the last. A gradient of n numbers is read at x = place (n - 1), linear
    between neighbours; one of words or switches gives the one at floor(x).

    >>> value_at([{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}], "layers.1.mlp.weight", 0.25)
    0.25
    >>> value_at([0, 0.5, 0.3], "any", 0.75), value_at([True, False], "any", 0.9)
    (0.4, True)
    >>> value_at({"filter": "a", "value": 1}, "b", 0) is None
    True
    """
    for part, value in cases_of(setting):
        if part == EVERYTHING or part in name:
            return _at(value, place) if isinstance(value, list | tuple) else value
    return None


def _at(values: list[Scalar] | tuple[Scalar, ...], place: float) -> Scalar:
    x = place * (len(values) - 1)
    left = min(int(x), len(values) - 1)
    if left == x or any(isinstance(one, bool | str) for one in values):
        return values[left]
    first, second = float(values[left]), float(values[left + 1])
    return first + (x - left) * (second - first)
