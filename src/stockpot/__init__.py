"""stockpot: several fine-tuned checkpoints of one base model become one better model.

>>> import stockpot
>>> result = stockpot.merge("model_stock", base="base", models=["ft1", "ft2"], out="merged")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._later import later
from stockpot._version import __version__

if TYPE_CHECKING:
    from stockpot._api import geometry, merge, merge_state_dicts, open_checkpoint, plan
    from stockpot.checkpoint import last_checkpoints
    from stockpot.collect import collect_fisher, collect_inputs
    from stockpot.engine import Geometry, MergeResult, Plan, verify
    from stockpot.recipe import Recipe

__all__ = [
    "Geometry",
    "MergeResult",
    "Plan",
    "Recipe",
    "__version__",
    "collect_fisher",
    "collect_inputs",
    "geometry",
    "last_checkpoints",
    "merge",
    "merge_state_dicts",
    "open_checkpoint",
    "plan",
    "verify",
]

_LATER = {
    "Geometry": "engine",
    "MergeResult": "engine",
    "Plan": "engine",
    "Recipe": "recipe",
    "collect_fisher": "collect",
    "collect_inputs": "collect",
    "geometry": "_api",
    "last_checkpoints": "checkpoint",
    "merge": "_api",
    "merge_state_dicts": "_api",
    "open_checkpoint": "_api",
    "plan": "_api",
    "verify": "engine",
}

__getattr__ = later(__name__, _LATER)


def __dir__() -> list[str]:
    return sorted(__all__)
