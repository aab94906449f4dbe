"""LoRA adapters: a base and an adapter as one checkpoint, and several adapters as one."""

from stockpot.adapters._adapted import AdaptedCheckpoint, adapted
from stockpot.adapters._open import open_source
from stockpot.adapters._peft import Adapter, is_adapter, read_adapter
from stockpot.adapters._sum import AdapterSum, Loss

__all__ = [
    "AdaptedCheckpoint",
    "Adapter",
    "AdapterSum",
    "Loss",
    "adapted",
    "is_adapter",
    "open_source",
    "read_adapter",
]
