"""The constants of reduction. They are part of the results: changing one changes bits."""

from __future__ import annotations

BLOCK = 1 << 16
"""Elements per block: the float32 rows of a few inputs stay in a core's own cache."""
CHUNK = 1 << 11
"""Elements whose products are summed in the wide dtype before the sum goes on in float64."""


def rows_per_step(columns: int) -> int:
    """Whole rows of that length that are reduced at once; a constant of the shape."""
    return max(1, BLOCK // max(columns, 1))
