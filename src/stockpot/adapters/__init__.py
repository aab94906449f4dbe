"""LoRA adapters: a base and an adapter as one checkpoint, and several adapters as one."""

from stockpot.adapters._adapted import AdaptedCheckpoint
from stockpot.adapters._open import open_source
from stockpot.adapters._peft import Adapter, LowRank, is_adapter, read_adapter

__all__ = ["AdaptedCheckpoint", "Adapter", "LowRank", "is_adapter", "open_source", "read_adapter"]
