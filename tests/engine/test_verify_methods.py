"""``verify`` of what each registered method makes: whole outputs are whole, and inner products that lie are damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from tests.safety._outputs import SHAPES, models
from tests.safety.test_lies import resum

import stockpot
from stockpot.engine import verify
from stockpot.methods import Method, Mixture, get_method

from .test_same_bytes import cases, options

GEOMETRY = "stockpot_geometry.safetensors"
BY_GRAM = [case for case in cases() if get_method(case.values[0]).uses_gram]
WITH_OR_WITHOUT = {"required": (True,), "unused": (False,)}


def merged(name: str, granularity: str | None, with_base: bool, root: Path) -> Path:
    """A tiny output of a method, of two fine-tunes at most, with or without a base."""
    base, *rest = models(root)
    given = options(name, granularity, rest)
    if given["models"] == rest[:1] and not with_base and get_method(name).base == "member":
        given["models"] = rest
    parameters = {key: value[:2] if isinstance(value, list) else value for key, value in given["parameters"].items()}
    chosen = {"base": base} if with_base else {}
    return stockpot.merge(name, out=root / "out", **(given | {"parameters": parameters} | chosen)).out


@pytest.mark.parametrize(("name", "granularity"), cases())
def test_whole(name: str, granularity: str | None, tmp_path: Path) -> None:
    """Of every method, at every granularity, with and without a base where it may have one, an output is whole."""
    for with_base in WITH_OR_WITHOUT.get(get_method(name).base, (True, False)):
        out = merged(name, granularity, with_base, tmp_path / str(with_base))
        result = verify(out, recompute=1.0)
        assert (result.problems, result.recomputed) == ((), 3), (name, granularity, with_base)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("name", "granularity"), BY_GRAM)
def test_inner_products_that_lie(
    name: str, granularity: str | None, size: int, value: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Inner products of too few or too many models, or of no numbers, sums made right, are damage: told, not raised."""
    root = tmp_path_factory.getbasetemp() / f"{name}-{granularity}"
    out = root / "out" if root.exists() else merged(name, granularity, get_method(name).base != "unused", root)
    stored = safetensors.numpy.load_file(out / GEOMETRY)
    shapes = {group: (*found.shape[:-1], size * (size + 1) // 2) for group, found in stored.items()}
    safetensors.numpy.save_file({group: np.full(shape, value) for group, shape in shapes.items()}, out / GEOMETRY)
    resum(out)
    problems = verify(out).problems
    assert problems or granularity == "row"  # of rows, quantiles of ratios are recorded at most
    assert all(GEOMETRY in problem for problem in problems)


@pytest.mark.parametrize("error", [ValueError, IndexError, TypeError, ZeroDivisionError, np.linalg.LinAlgError])
def test_a_method_that_cannot_work(error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a method raises over inner products that are not its own is damage of their file, with the tensor."""
    out = merged("karcher", "tensor", False, tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise error("a strange matrix")

    monkeypatch.setattr("stockpot.methods.Method.__call__", refuse)
    expected = [f"{GEOMETRY}: tensor {name}: karcher cannot work on it (a strange matrix)" for name in SHAPES]
    assert sorted(verify(out).problems) == expected


def test_many_groups_are_asked_about_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method is called once for many tensors, not for each; whose inner products are at fault is told all the
    same."""
    out = merged("model_stock", "tensor", True, tmp_path)
    sizes: list[int] = []
    asked = Method.__call__

    def counted(method: Method, gram: np.ndarray, *arguments: Any, **options: Any) -> Mixture:
        sizes.append(len(gram))
        if np.isnan(gram).any():
            raise ValueError("no number")
        return asked(method, gram, *arguments, **options)

    monkeypatch.setattr(Method, "__call__", counted)
    assert verify(out).problems == ()
    assert sizes == [len(SHAPES)]
    stored = safetensors.numpy.load_file(out / GEOMETRY)
    stored["norm.weight"][0] = np.nan
    safetensors.numpy.save_file(stored, out / GEOMETRY)
    resum(out)
    assert verify(out).problems == (f"{GEOMETRY}: tensor norm.weight: model_stock cannot work on it (no number)",)
