"""The page of recipes: every recipe on it can be checked and merged, and what it tells of numbers holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.recipes._shelf import stock

from stockpot.cli import main
from stockpot.recipe import Graph, Recipe

PAGE = Path(__file__).parents[2].joinpath("docs", "recipes.md").read_text("utf-8")
RECIPES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that the page speaks of."""
    made = tmp_path_factory.mktemp("shelf")
    stock(made)
    return made


@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_recipe(number: int, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fine, and merges."""
    monkeypatch.chdir(shelf)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPES[number], "utf-8")
    assert main(["check", str(recipe), "--quiet"]) == 0
    assert main(["merge", str(recipe), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert (tmp_path / "out" / "stockpot.json").is_file()


def test_every_key_is_told() -> None:
    """The table has each key that a recipe may have; those of tokenizers have a page of their own."""
    table = PAGE.split("## Keys")[1].split("\n\nA model is")[0]
    told = set(re.findall(r"`(\w+)`", table))
    assert {*Recipe.model_fields} - {"tokenizer", "tokenizer_source", "chat_template"} <= told
    assert len(Graph.from_yaml(RECIPES[-1]).recipes) == 2
