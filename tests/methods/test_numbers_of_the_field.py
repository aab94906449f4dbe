"""Recipes that people have give the numbers that they had: another tool's, our oracles' and ours."""

import json
from pathlib import Path

import pytest
import torch
from tests.oracles import field

import stockpot
from stockpot.methods import all_methods

TAKEN = json.loads((Path(__file__).parent / "field.json").read_text("utf-8"))
FLOAT32_FACTOR = {"ramplus_tl"}
"""Where they round a factor of the result to float32."""


def parameters_of(recipe):
    """Parameters by name, as a list for the models where each has its own."""
    found = dict(recipe["parameters"])
    for name in recipe["models"][0]["parameters"]:
        found[name] = [entry["parameters"][name] for entry in recipe["models"]]
    return found


CASES = [(case["recipe"]["merge_method"], parameters_of(case["recipe"]), case["merged"]) for case in TAKEN["cases"]]


def close(method, values):
    """To a dozen digits, which is what was written down; or to a factor of float32 on differences of size one."""
    return pytest.approx(values, rel=1e-11, abs=2e-7 if method in FLOAT32_FACTOR else 1e-12)


def test_every_case_was_taken():
    """The numbers are those of the cases that stand in the code."""
    assert [(method, given) for method, given, _ in CASES] == [
        (method, given) for method, cases in field.CASES.items() for given in cases
    ]


@pytest.mark.parametrize(("method", "given", "merged"), CASES)
def test_oracles(method, given, merged):
    """What was written from the papers is what the field computes."""
    base, models = field.inputs(field.model_count(method))
    for name in field.SHAPES:
        found = field.expected(method, given, base[name], [model[name] for model in models])
        assert merged[name] == close(method, found.ravel())


@pytest.mark.parametrize(("method", "given", "merged"), [case for case in CASES if case[0] in all_methods()])
def test_methods(method, given, merged):
    """What we merge is what the field merges."""
    maps = [{name: torch.from_numpy(array) for name, array in one.items()} for one in _inputs(method)]
    found = stockpot.merge_state_dicts(method, base=maps[0], models=maps[1:], parameters=given)
    for name in field.SHAPES:
        assert merged[name] == close(method, found[name].flatten().numpy())


def _inputs(method):
    base, models = field.inputs(field.model_count(method))
    return [base, *models]
