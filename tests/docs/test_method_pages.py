"""The pages of the methods are what the code says, and their examples run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import docs_methods
import pytest
import safetensors.torch
import torch

from stockpot.cli import main

DOCS = Path(__file__).resolve().parents[2] / "docs"
METHODS = docs_methods.built_in()


def test_the_index_is_current() -> None:
    """Regenerate it with ``make docs``; every method has its page, and nothing else has one."""
    assert (DOCS / "methods.md").read_text("utf-8") == docs_methods.index_page()
    assert sorted(path.stem for path in (DOCS / "methods").iterdir()) == sorted(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_page_is_current(name: str) -> None:
    """Regenerate it with ``make docs`` when a signature or a docstring changes; formula and cost are there."""
    page = (DOCS / "methods" / f"{name}.md").read_text("utf-8")
    assert page == docs_methods.method_page(METHODS[name])
    assert "Cost: " in page
    assert " = " in page
    assert all(f"| `{parameter}` |" in page for parameter in METHODS[name].parameters)


@pytest.mark.parametrize("name", METHODS)
def test_the_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a command and as a recipe, to the same bytes."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(8, 6, generator=generator)
    for model in ("base", "fine-tune-1", "fine-tune-2"):
        (tmp_path / model).mkdir()
        step = 0.0 if model == "base" else 0.1 * torch.randn(8, 6, generator=generator)
        safetensors.torch.save_file({"layer.0.weight": base + step}, tmp_path / model / "model.safetensors")
        seen = torch.randn(9, 6, generator=generator, dtype=torch.float64)
        for kind, values in (("fisher", base.square() + step), ("inputs", seen.T @ seen)):
            safetensors.torch.save_file({"layer.0.weight": values.abs()}, tmp_path / f"{model}-{kind}.safetensors")
    page = (DOCS / "methods" / f"{name}.md").read_text("utf-8")
    (commands,) = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    *collecting, merging = (shlex.split(line)[2:] for line in commands.splitlines())
    for line in collecting:
        assert line[:2] == ["collect", line[1]]
        assert line[2] == line[line.index("--data") + 1].removesuffix(".jsonl")
        values = torch.eye(6, dtype=torch.float64) if line[1] == "inputs" else torch.rand(8, 6, generator=generator)
        safetensors.torch.save_file({"layer.0.weight": values}, line[line.index("--out") + 1])
    (recipe,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(recipe, "utf-8")
    assert main(merging) == 0
    assert main(["merge", "recipe.yaml", "--out", "again", "--quiet"]) == 0
    merged, again = (Path(out, "model.safetensors").read_bytes() for out in ("merged", "again"))
    assert safetensors.torch.load(merged)["layer.0.weight"].shape == (8, 6)
    assert merged == again


def test_which_method_names_methods() -> None:
    """Every name in the tables of the page is a method's."""
    page = (DOCS / "which-method.md").read_text("utf-8")
    taken = [row.split("|")[2] for row in re.findall(r"^\|.*\|$", page, re.MULTILINE)]
    named = {name for cell in taken for name in re.findall(r"`([a-z_]+)`", cell)}
    assert {"linear", "model_stock", "slerp"} < named
    assert named <= set(METHODS)


def test_every_method_has_a_family() -> None:
    """The index puts each under one heading."""
    assert sorted(name for names in docs_methods.FAMILIES.values() for name in names) == sorted(METHODS)
