"""What data say of a model's weights, in files that methods take: diagonal Fisher values, inputs of linear layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._later import later

if TYPE_CHECKING:
    from stockpot.collect._verbs import Collected, collect_fisher, collect_inputs

__all__ = ["Collected", "collect_fisher", "collect_inputs"]

_LATER = dict.fromkeys(__all__, "_verbs")
"""They need torch at once."""

__getattr__ = later(__name__, _LATER)
