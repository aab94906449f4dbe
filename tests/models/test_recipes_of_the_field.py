"""Recipes as the field writes them: the output loads, has that many layers, and the numbers of another tool."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from stockpot.cli import main

from . import _field_recipes as recipes

TAKEN = json.loads((Path(__file__).parent / "field_recipes.json").read_text("utf-8"))["recipes"]


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models, by name."""
    folder = tmp_path_factory.mktemp("field")
    recipes.make_models(folder)
    return folder


@pytest.mark.parametrize("title", recipes.RECIPES)
def test_a_recipe(title: str, kitchen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor is the one that the recipe's own tool makes, to a dozen digits."""
    monkeypatch.chdir(kitchen)
    (tmp_path / "recipe.yaml").write_text(recipes.RECIPES[title], "utf-8")
    assert main(["merge", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    found = recipes.read(tmp_path / "out")
    assert found.keys() == TAKEN[title].keys()
    for name, tensor in found.items():
        assert recipes.sample(tensor) == pytest.approx(TAKEN[title][name], rel=1e-10, abs=1e-11), name
    model, told = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values()), told
    assert len(model.model.layers) == 1 + max(int(name.split(".")[2]) for name in found if ".layers." in name)
