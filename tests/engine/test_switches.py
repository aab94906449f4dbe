"""The switches of the field's recipes that mean rows here."""

import pytest
import torch
from tests.oracles.data import merge_one, normal

from stockpot import errors
from stockpot.engine._job import resolve
from stockpot.recipe import Recipe


def job(method, parameters, own=None):
    """The job of a recipe file with a base and two models."""
    models = [{"model": name, "parameters": {"weight": 1.0, **(own or {})}} for name in ("a", "b")]
    data = {"merge_method": method, "base_model": "base", "models": models, "parameters": parameters}
    return resolve(Recipe.from_data(data), from_file=True)


@pytest.mark.parametrize(
    ("method", "parameters", "granularity"),
    [
        ("nuslerp", {}, "tensor"),
        ("nuslerp", {"nuslerp_flatten": True}, "tensor"),
        ("nuslerp", {"nuslerp_row_wise": True}, "tensor"),
        ("nuslerp", {"nuslerp_flatten": False}, "row"),
        ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": False}, "row"),
        ("model_stock", {"filter_wise": False}, "tensor"),
        ("model_stock", {"filter_wise": True}, "row"),
    ],
)
def test_what_a_switch_means(method, parameters, granularity):
    """Rows, with a word about which; nothing where it is off; columns without effect where the tensor is one vector."""
    found = job(method, parameters)
    assert found.granularity == granularity
    said = [warning for warning in found.warnings if "granularity row" in warning]
    assert len(said) == (granularity == "row")


def test_at_the_models():
    """A switch that stands at the models is one for the whole merge."""
    assert job("nuslerp", {}, {"nuslerp_flatten": False}).granularity == "row"


def test_columns_are_refused():
    """With the two ways to go on."""
    with pytest.raises(errors.ParameterError, match=r"column by column .* leave nuslerp_row_wise out"):
        job("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True})


@pytest.mark.parametrize("value", [1, "false", 0.5])
def test_neither_true_nor_false(value):
    """Is refused, not guessed."""
    with pytest.raises(errors.ParameterError, match="nuslerp_flatten is one switch"):
        job("nuslerp", {"nuslerp_flatten": value})


@pytest.mark.parametrize("values", [(True, False), (False, True)])
def test_models_that_disagree_are_refused(values):
    """Whichever comes last; the same of each is one switch."""

    def of(*own):
        models = [{"model": f"m{number}", "parameters": {"filter_wise": one}} for number, one in enumerate(own)]
        data = {"merge_method": "model_stock", "base_model": "base", "models": models}
        return resolve(Recipe.from_data(data), from_file=True)

    with pytest.raises(errors.ParameterError, match=r"filter_wise is one switch .*(true and false|false and true)"):
        of(*values)
    assert of(True, True).granularity == "row"


@pytest.mark.parametrize(
    ("method", "parameters"), [("model_stock", {"filter_wise": True}), ("nuslerp", {"nuslerp_flatten": False})]
)
@pytest.mark.parametrize("other", ["tensor", "model"])
def test_another_granularity_beside_rows_is_refused(method, parameters, other):
    """As a contradiction, wherever the granularity stands; rows by both words are rows."""
    with pytest.raises(errors.ParameterError, match=f"granularity {other} contradicts {next(iter(parameters))}"):
        job(method, {**parameters, "granularity": other})
    data = {"merge_method": method, "base_model": "base", "models": [{"model": "a"}, {"model": "b"}]}
    with pytest.raises(errors.ParameterError, match=f"granularity {other} contradicts"):
        resolve(Recipe.from_data({**data, "parameters": parameters, "granularity": other}))
    assert job(method, {**parameters, "granularity": "row"}).granularity == "row"


def test_another_methods_switch_is_told():
    """As every parameter that this method does not have."""
    assert any(
        "nuslerp_flatten is no parameter of model_stock" in one
        for one in job("model_stock", {"nuslerp_flatten": False}).warnings
    )


def test_the_switch_merges_rows():
    """The same tensor as by granularity row, and another than flat."""
    pair = [normal(4, 5, seed=1), normal(4, 5, seed=2)]
    parameters = {"weight": [1.0, 3.0]}
    rows = merge_one("nuslerp", None, pair, parameters=parameters, granularity="row")
    assert torch.equal(merge_one("nuslerp", None, pair, parameters={**parameters, "nuslerp_flatten": False}), rows)
    assert not torch.equal(merge_one("nuslerp", None, pair, parameters=parameters), rows)
