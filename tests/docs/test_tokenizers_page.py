"""The page of tokenizers: its recipes run as they stand, in Python too, and what comes out loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.vocabulary._zoo import CHAT, loaded, make, tokenizer

import stockpot

PAGE = Path(__file__).parents[2].joinpath("docs", "tokenizers.md").read_text("utf-8")
RECIPES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The models that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "base", tokenizer(), 0, rows=310)
    make(tmp_path / "chat", tokenizer(added=CHAT), 1)
    make(tmp_path / "code", tokenizer(size=330, added=["<|pad|>"]), 2)
    return tmp_path


@pytest.mark.parametrize("text", RECIPES)
def test_a_recipe_of_the_page(text: str, models: Path) -> None:
    """It merges, says what it did, and its output loads with all tokens."""
    (models / "recipe.yaml").write_text(text, "utf-8")
    (code,) = PYTHON
    found: dict[str, stockpot.MergeResult] = {}
    exec(code, found)
    model, tokens = loaded(models / "merged")
    assert {*CHAT, "<|pad|>"} <= set(tokens.get_vocab())
    assert model.config.vocab_size % (64 if "pad_to_multiple_of" in text else 1) == 0
    assert {d.tensor for d in found["result"].decisions} >= {"lm_head.weight", "model.embed_tokens.weight"}
    assert (tokens.chat_template is not None) is ("chatml" in text)


def test_every_format_that_has_a_name_is_on_the_page() -> None:
    """None is forgotten."""
    assert all(f"`{name}`" in PAGE for name in stockpot.recipe.CHAT_TEMPLATES)
