"""Real fine-tunes merged element by element: the output loads, and holds the oracles' numbers tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.oracles import exact, field

import stockpot
from stockpot.methods import all_methods

from . import _oracle
from ._zoo import Family, load, outputs_are_finite

WEIGHTS = {"weight": [0.5772156649, 0.3010299957, 0.9162907319]}
GIVEN = {
    "ties": {**WEIGHTS, "density": [0.5, 0.3, 0.8]},
    "breadcrumbs": {**WEIGHTS, "density": [0.5, 0.3, 0.8], "gamma": [0.1, 0.01, 0.2]},
    "breadcrumbs_ties": {**WEIGHTS, "density": [0.5, 0.3, 0.8], "gamma": [0.1, 0.01, 0.2]},
    "sce": {"select_topk": 0.4},
    "nearswap": {"t": 0.001},
    "arcee_fusion": {},
    "ram": {"epsilon": 0.001},
    "ramplus_tl": {"epsilon": 0.001, "r": 0.5, "alpha": 2.0},
}
RANDOM = {method: {**WEIGHTS, "density": 0.4} for method in ("dare_linear", "dare_ties", "della", "della_linear")}


def merged(family: Family, out: Path, method: str, given: dict[str, object]) -> dict[str, torch.Tensor]:
    """The tensors of a merge of the family's folders, which has to load and run."""
    folders = family.folders[: field.model_count(method)]
    stockpot.merge(method, base=family.base_folder, models=folders, out=out, parameters=given)
    assert outputs_are_finite(load(family.kind.cls, out), family.kind)
    return _oracle.read(out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", [name for name in GIVEN if name in all_methods()])
def test_numbers(method: str, dtype: torch.dtype, families: Callable[..., Family], tmp_path: Path) -> None:
    """Every element of every tensor is the oracle's, rounded once; the law leaves 1 in 100,000 to the last bit."""
    family = families("llama", dtype)
    found = merged(family, tmp_path / "out", method, GIVEN[method])
    base, *models = (_oracle.read(folder) for folder in (family.base_folder, *family.folders))
    models = models[: field.model_count(method)]
    wrong = 0
    for name, tensor in found.items():
        anchor, *others = (one[name].double().numpy() for one in (base, *models))
        expected = field.expected(method, GIVEN[method], anchor, others).ravel()
        best = abs(exact.rounded(expected, dtype) - expected)
        wrong += int((abs(exact.numbers(tensor) - expected) > best * (1 + 1e-6)).sum())
        assert tensor.dtype == dtype
    assert wrong <= sum(tensor.numel() for tensor in found.values()) / 100_000


@pytest.mark.parametrize("method", RANDOM)
def test_random_methods(method: str, families: Callable[..., Family], tmp_path: Path) -> None:
    """The output loads, is the same again, and with one model about the density of all elements moves."""
    family = families("llama")
    first = merged(family, tmp_path / "first", method, RANDOM[method])
    again = merged(family, tmp_path / "again", method, RANDOM[method])
    assert all(torch.equal(first[name], again[name]) for name in first)
    stockpot.merge(
        method, base=family.base_folder, models=family.folders[:1], out=tmp_path / "one",
        parameters={"density": 0.4, "weight": 1.0},
    )  # fmt: skip
    one, base, model = (_oracle.read(folder) for folder in (tmp_path / "one", family.base_folder, family.folders[0]))
    moved = sum(int((one[name] != base[name]).sum()) for name in one)
    changed = sum(int((model[name] != base[name]).sum()) for name in one)
    assert abs(moved / changed - 0.4) < 4 * (0.4 * 0.6 / changed) ** 0.5
