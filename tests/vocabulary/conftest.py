"""The command line, for recipes that speak of tokenizers."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from tests.cli.conftest import program

__all__ = ["program"]
