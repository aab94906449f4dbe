"""What to do, as data: the field's recipe format, strictly read, and written again. Nothing is ever executed."""

from __future__ import annotations

from stockpot.recipe._build import build_recipe
from stockpot.recipe._recipe import IGNORED_PARAMETERS, Mismatch, Missing, ModelEntry, Policies, Recipe, Ref
from stockpot.recipe._sizes import parse_size
from stockpot.recipe._tokenizer import AUTO, CHAT_TEMPLATES, ModelToken, Tokenizer, TokenSource, ZeroToken
from stockpot.recipe._yaml import NODES_CAP, SIZE_CAP, YAML_ERRORS

__all__ = [
    "AUTO",
    "CHAT_TEMPLATES",
    "IGNORED_PARAMETERS",
    "NODES_CAP",
    "SIZE_CAP",
    "YAML_ERRORS",
    "Mismatch",
    "Missing",
    "ModelEntry",
    "ModelToken",
    "Policies",
    "Recipe",
    "Ref",
    "TokenSource",
    "Tokenizer",
    "ZeroToken",
    "build_recipe",
    "parse_size",
]
