"""Data that several tests of the lab read and none changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from stockpot.lab._digits import Examples, load_digits
from stockpot.lab._glyphs import GlyphSet, load_glyphs

from . import _clip_zoo as zoo


@pytest.fixture(scope="session")
def digits() -> Examples:
    """The handwritten digits."""
    return load_digits()


@pytest.fixture(scope="session")
def glyphs() -> GlyphSet:
    """The printed digits."""
    return load_glyphs()


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from more, and wait long where other tests run beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> zoo.Sets:
    """ImageNet and its shifts, generated."""
    return zoo.save_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory, sets: zoo.Sets, one_thread: None) -> zoo.Family:
    """A tiny CLIP and fine-tunes of it."""
    return zoo.save_family(tmp_path_factory.mktemp("family"), sets)
