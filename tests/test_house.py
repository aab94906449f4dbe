"""The house rules that a script can hold."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stockpot
from stockpot import errors

SOURCE = Path(stockpot.__file__).parent
PACKAGES = ["stockpot", *(f"stockpot.{m.name}" for m in pkgutil.iter_modules([str(SOURCE)]) if m.ispkg)]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_a_public_list(package: str) -> None:
    """``__all__`` is there and every name in it can be had."""
    module = importlib.import_module(package)
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_no_public_verb_shares_its_name_with_a_subpackage() -> None:
    """``stockpot.merge`` must never become a module by an import elsewhere."""
    assert not set(stockpot.__all__) & {m.name for m in pkgutil.iter_modules([str(SOURCE)])}


def test_leaf_modules_are_private() -> None:
    """Inside a package of the library, modules are ``_private``; the commands of the CLI have plain names."""
    packages = ("checkpoint", "kernels", "measure", "methods", "engine", "report", "lab", "testing")
    for package in (SOURCE / name for name in packages):
        assert all(path.name.startswith("_") for path in package.glob("*.py")), package.name


def test_no_file_is_past_its_idea() -> None:
    """No source file has more than 500 lines."""
    assert [p.name for p in SOURCE.rglob("*.py") if len(p.read_text("utf-8").splitlines()) > 500] == []


def test_the_exception_tree_is_drawn_whole() -> None:
    """Every exception class stands in the docstring's drawing, and kinds are unique."""
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.StockpotError)]
    drawn = set(re.findall(r"\b(?:[A-Z]\w+Error|Stopped)\b", errors.__doc__ or ""))
    assert {c.__name__ for c in classes} <= drawn
    assert len({c.kind for c in classes}) == len(classes)


def test_every_error_is_a_builtin_kind_too() -> None:
    """Bad input is a ValueError, so that callers need not know our tree."""
    assert issubclass(errors.InputError, ValueError)
    assert issubclass(errors.RunError, RuntimeError)
    assert issubclass(errors.NotFoundError, FileNotFoundError)


def test_planning_needs_no_torch(tmp_path: Path) -> None:
    """``import stockpot``, the catalogue and a recipe load without torch, and sklearn and matplotlib stay out too."""
    code = (
        "import sys, stockpot; from stockpot.methods import all_methods; from stockpot.recipe import Recipe;"
        "import stockpot.engine; import stockpot.report; all_methods();"
        "print([m for m in ('torch', 'sklearn', 'matplotlib', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"
