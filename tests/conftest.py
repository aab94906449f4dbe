"""For all tests: the shapes that the kernels state are checked at every call; ``--soak`` runs whole campaigns."""

import jaxtyping
import pytest

jaxtyping.install_import_hook(["stockpot.kernels._rows"], "beartype.beartype")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``make soak``: the tests of tests/safety do what they do many times more, and record it."""
    parser.addoption("--soak", action="store_true", help="campaigns of tests/safety in full, with results recorded")
