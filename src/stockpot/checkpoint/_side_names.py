"""Which files beside the weights belong to a checkpoint, by their names."""

from __future__ import annotations

import re

from stockpot.checkpoint._folder import PICKLE_SUFFIXES, TRAINING_WORDS

_SKIPPED_WORDS = (*TRAINING_WORDS, "trainer_state")
_SKIPPED_FOLDERS = ("runs", "wandb", "mlruns", "lightning_logs", "logs", "__pycache__")
"""What training leaves beside a model, with as many files as it had steps."""


_OTHER_WEIGHTS = (
    *(".h5", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".distcp", ".ot", ".tflite", ".mlmodel", ".nemo", ".npz"),
)


def is_side_folder(name: str) -> bool:
    """Whether files of a subfolder of that name come along."""
    return not name.startswith((".", "checkpoint-", "global_step")) and name not in _SKIPPED_FOLDERS


def is_side_file(path: str) -> bool:
    """Whether a file comes along, by its path in the checkpoint: no weights, no training state, nothing hidden."""
    *folders, name = path.split("/")
    return all(map(is_side_folder, folders)) and not (
        name.startswith((".", "checkpoint-", "stockpot_", "events.out.tfevents"))
        or name in ("SHA256SUMS", "stockpot.json")
        or is_weight_file(name)
        or (any(word in name.lower() for word in _SKIPPED_WORDS) and not (folders and name.endswith("_config.json")))
        or name.lower().startswith(("readme", "training_args"))
    )


def is_weight_file(name: str) -> bool:
    """Whether a file name is that of weights or of their index, in any form that we know."""
    lowered = name.lower()
    return lowered.endswith((".safetensors", *PICKLE_SUFFIXES, *_OTHER_WEIGHTS)) or bool(
        re.search(r"\.(safetensors|bin)\.index(\..*)?\.json$", lowered)
    )
