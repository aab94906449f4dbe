"""Elements made block by block: refused with their place in the piece, whichever block they lie in."""

from __future__ import annotations

import numpy as np
import pytest
from tests.kernels.test_selection import row_of

from stockpot.kernels import BLOCK, NonFiniteInputError, OverflowedError, Row, make_by_blocks

AT = BLOCK + 77


def made(values: np.ndarray) -> Row:
    """Twice the input, as float16."""
    rows = [row_of(np.zeros(values.size), "float32"), row_of(values, "float32")]
    out = Row("float16", np.zeros(2 * values.size, dtype=np.uint8))
    make_by_blocks(rows, out, lambda _, inputs: 2.0 * inputs[1])
    return out


def test_what_does_not_fit_is_told_with_its_place() -> None:
    """A finite result that the output cannot hold, in the second block."""
    values = np.ones(2 * BLOCK)
    values[AT] = 6e4
    with pytest.raises(OverflowedError) as raised:
        made(values)
    assert raised.value.index == AT


def test_what_is_not_finite_is_told_with_its_input_and_place() -> None:
    """NaN in the second input's second block."""
    values = np.ones(2 * BLOCK)
    values[AT] = np.nan
    with pytest.raises(NonFiniteInputError) as raised:
        made(values)
    assert (raised.value.source, raised.value.index) == (1, AT)


def test_every_block_is_made() -> None:
    """Also the last, which is shorter."""
    values = np.arange(2 * BLOCK + 3) % 100.0
    assert np.array_equal(made(values).data.view(np.float16), (2.0 * values).astype(np.float16))
