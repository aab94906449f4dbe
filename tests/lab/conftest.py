"""Data that several tests of the lab read and none changes."""

from __future__ import annotations

import pytest

from stockpot.lab._digits import Examples, load_digits
from stockpot.lab._glyphs import GlyphSet, load_glyphs


@pytest.fixture(scope="session")
def digits() -> Examples:
    """The handwritten digits."""
    return load_digits()


@pytest.fixture(scope="session")
def glyphs() -> GlyphSet:
    """The printed digits."""
    return load_glyphs()
