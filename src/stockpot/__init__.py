"""stockpot: several fine-tuned checkpoints of one base model become one better model.

>>> import stockpot
>>> result = stockpot.merge("model_stock", base="base", models=["ft1", "ft2"], out="merged")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stockpot._version import __version__

if TYPE_CHECKING:
    from stockpot._api import geometry, merge, merge_state_dicts, plan
    from stockpot.checkpoint import open_checkpoint
    from stockpot.engine import Geometry, MergeResult, Plan, verify
    from stockpot.recipe import Recipe

__all__ = [
    "Geometry",
    "MergeResult",
    "Plan",
    "Recipe",
    "__version__",
    "geometry",
    "merge",
    "merge_state_dicts",
    "open_checkpoint",
    "plan",
    "verify",
]

_LATER = {
    "Geometry": "stockpot.engine",
    "MergeResult": "stockpot.engine",
    "Plan": "stockpot.engine",
    "Recipe": "stockpot.recipe",
    "geometry": "stockpot._api",
    "merge": "stockpot._api",
    "merge_state_dicts": "stockpot._api",
    "open_checkpoint": "stockpot.checkpoint",
    "plan": "stockpot._api",
    "verify": "stockpot.engine",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'stockpot' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
