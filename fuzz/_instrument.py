"""Which code is watched: atheris is given the functions themselves.

``atheris.instrument_imports`` alone left modules that were loaded before without any feedback.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType, ModuleType

import atheris


def instrument(modules: list[ModuleType]) -> int:
    """Watch every function that these modules define, methods too; returns how many."""
    found = {id(function.__code__): function for module in modules for function in _functions(module)}
    for function in found.values():
        atheris.instrument_func(function)
    return len(found)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    for value in vars(module).values():
        if inspect.isclass(value) and value.__module__ == module.__name__:
            for member in vars(value).values():
                yield from _own(member, module)
        else:
            yield from _own(value, module)


def _own(value: object, module: ModuleType) -> Iterator[FunctionType]:
    """A function behind whatever wraps it, if its text stands in this module."""
    if isinstance(value, property):
        value = value.fget
    value = getattr(value, "__func__", value)
    value = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, FunctionType) and value.__code__.co_filename == module.__file__:
        yield value
