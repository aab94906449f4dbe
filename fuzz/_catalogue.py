"""The targets by name; each is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from fuzz._target import Target

PLACES = {
    "header": ("headers", "TARGET"),
    "index": ("indexes", "INDEXES"),
    "folder": ("indexes", "FOLDER"),
    "shards": ("indexes", "SHARDED"),
    "config": ("configs", "TARGET"),
    "recipe": ("recipes", "TARGET"),
    "pickle": ("pickles", "PICKLE"),
    "archive": ("pickles", "ARCHIVE"),
    "legacy": ("pickles", "LEGACY"),
    "dcp": ("distributed", "TARGET"),
    "journal": ("journals", "TARGET"),
    "adapter": ("adapters", "TARGET"),
    "provenance": ("provenance", "TARGET"),
}
PLANTED = "planted"
"""Of ``fuzz._planted``: a reader with a bug that only branch after branch leads to."""


def target_of(name: str) -> Target:
    """The target of that name."""
    module, attribute = ("_planted", "TARGET") if name == PLANTED else PLACES[name]
    found = getattr(import_module(f"fuzz.{module}"), attribute)
    assert isinstance(found, Target)
    return found
