"""Every method of the catalogue answers the contract's questions, and a method that breaks one is found out."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.engine._statistics import statistics_of

from stockpot.methods import Mixture, all_methods, coefficients
from stockpot.testing import check_method
from stockpot.testing._contract import SHAPES

CASES = [
    ("linear", {}),
    ("linear", {"weight": [0.5, 0.25, 0.25]}),
    ("wise_ft", {}),
    ("wise_ft", {"alpha": 1.0}),
    ("task_arithmetic", {"weight": 0.4}),
    ("task_arithmetic", {"weight": 1.0, "normalize": True, "lambda": 0.7}),
    ("slerp", {"t": 0.3}),
    ("passthrough", {}),
    ("nuslerp", {"weight": [0.3, 0.7]}),
    ("nuslerp", {"weight": 1.0, "granularity": "row"}),
    ("multislerp", {"weight": 1.0}),
    ("multislerp", {"weight": [0.5, 0.3, 0.9], "normalize_weights": False}),
    ("karcher", {}),
    ("karcher", {"granularity": "block"}),
    ("ties", {}),
    ("ties", {"density": 0.3, "rescale": True, "lambda": 0.7}),
    ("ties", {"density": [0.2, 0.5, 0.9], "weight": [0.5, 1.0, -0.3], "normalize": False}),
    ("dare_linear", {"density": 0.4}),
    ("dare_ties", {"density": 0.4, "normalize": True}),
    ("breadcrumbs", {"density": 0.4, "gamma": 0.1}),
    ("breadcrumbs_ties", {"density": 0.9, "rescale": True}),
    ("della", {"density": 0.5}),
    ("della_linear", {"density": 0.7, "epsilon": 0.1, "rescale": False}),
    ("sce", {}),
    ("sce", {"select_topk": 0.2}),
    ("nearswap", {"t": 0.05}),
    ("arcee_fusion", {}),
    ("ram", {"epsilon": 0.1}),
    ("ramplus_tl", {"epsilon": 0.2}),
    ("emr", {}),
    ("emr", {"task": 1}),
    ("fisher", {}),
    ("fisher", {"weight": [0.5, 1.0, 0.0]}),
    ("regmean", {}),
    ("regmean", {"alpha": 1.0}),
    ("model_stock", {}),
    ("model_stock", {"norms": "free"}),
    ("model_stock", {"granularity": "row"}),
    ("model_stock", {"granularity": "block"}),
]


@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_every_method_meets_the_contract(name: str, parameters: dict[str, object], tmp_path: Path) -> None:
    """Each method, with each kind of parameter, answers all questions."""
    first = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in SHAPES.items()}, first)
    check_method(name, {**parameters, **statistics_of(name, [first] * 3)})


def test_no_method_is_left_out() -> None:
    """The cases above name every registered method."""
    assert {name for name, _ in CASES} == set(all_methods())


@coefficients(base="required", models=(2, None), reference="none")
def first_only(count: int) -> Mixture:
    """Takes the first model, so that the order matters."""
    return Mixture(np.array([0.0, 1.0] + [0.0] * (count - 2)))


@coefficients(base="required", models=(2, None), reference="none")
def half(count: int) -> Mixture:
    """Weights that sum to one half."""
    return Mixture(np.full(count, 0.5 / count))


class _EntryPoint:
    """An installed package's entry point, as importlib finds it."""

    def __init__(self, method: object) -> None:
        self.name = "other"
        self._method = method

    def load(self) -> object:
        """What the package offers."""
        return self._method


@pytest.mark.parametrize(("method", "complaint"), [(first_only, "order of the models"), (half, "Equal inputs")])
def test_the_contract_finds_a_broken_method(method: object, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's method arrives by entry point, and the question that it fails is named."""
    monkeypatch.setattr("stockpot.methods.entry_points", lambda group: [_EntryPoint(method)])
    all_methods.cache_clear()
    try:
        assert method.name in all_methods()  # type: ignore[attr-defined]  # made a Method by the decorator
        with pytest.raises(AssertionError, match=complaint):
            check_method(method.name)  # type: ignore[attr-defined]  # the same
    finally:
        monkeypatch.undo()
        all_methods.cache_clear()


def test_an_entry_point_that_is_no_method_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package at fault is named."""
    monkeypatch.setattr("stockpot.methods.entry_points", lambda group: [_EntryPoint(importlib.metadata)])
    all_methods.cache_clear()
    try:
        with pytest.raises(ValueError, match="entry point other is no stockpot method"):
            all_methods()
    finally:
        monkeypatch.undo()
        all_methods.cache_clear()
