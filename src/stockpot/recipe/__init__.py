"""What to do, as data: the field's recipe format, strictly read, and written again. Nothing is ever executed."""

from __future__ import annotations

from stockpot.recipe._build import build_recipe
from stockpot.recipe._documents import Graph, document_of
from stockpot.recipe._parts import Mismatch, Missing, ModelEntry, Module, Policies, Slice, SliceSource
from stockpot.recipe._recipe import IGNORED_PARAMETERS, Recipe, Ref
from stockpot.recipe._settings import EVERYTHING, Setting, cases_of, is_constant, scalars_of, value_at
from stockpot.recipe._sizes import parse_size
from stockpot.recipe._tokenizer import AUTO, CHAT_TEMPLATES, ModelToken, Tokenizer, TokenSource, ZeroToken
from stockpot.recipe._yaml import NODES_CAP, SIZE_CAP, YAML_ERRORS

__all__ = [
    "AUTO",
    "CHAT_TEMPLATES",
    "ModelToken",
    "TokenSource",
    "Tokenizer",
    "ZeroToken",
    "EVERYTHING",
    "IGNORED_PARAMETERS",
    "Graph",
    "Module",
    "Setting",
    "Slice",
    "SliceSource",
    "cases_of",
    "document_of",
    "is_constant",
    "scalars_of",
    "value_at",
    "NODES_CAP",
    "SIZE_CAP",
    "YAML_ERRORS",
    "Mismatch",
    "Missing",
    "ModelEntry",
    "Policies",
    "Recipe",
    "Ref",
    "build_recipe",
    "parse_size",
]
