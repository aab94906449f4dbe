"""The examples in the methods' docstrings, which doctest does not find by itself: a method is no function."""

from __future__ import annotations

import doctest

import pytest

from stockpot.methods import all_methods


@pytest.mark.parametrize("name", sorted(all_methods()))
def test_every_method_shows_an_example_that_runs(name: str) -> None:
    """It prints what the docstring says."""
    (example,) = doctest.DocTestFinder().find(all_methods()[name].function, name, globs={})
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
