"""``config.json``: what is read of it, and how it is written again for an output."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import atheris

from fuzz import _json
from fuzz._memory import MemoryPlace
from fuzz._target import Run, Target
from stockpot.checkpoint import _folder, _ties
from stockpot.engine import _side_files

CONFIG = {
    "model_type": "llama", "torch_dtype": "float32", "tie_word_embeddings": True, "vision_config": {"dtype": "float16"},
    "text_config": {"tie_word_embeddings": True, "inner": {"dtype": "bfloat16"}}, "auto_map": {"AutoModel": "m.M"},
}  # fmt: skip
VALUES = (*_json.VALUES, *CONFIG, "dtype", "float32", _json.Raw('{"dtype":"float32","a":' * 300 + "1" + "}" * 300))


def _prepare(folder: Path) -> Run:
    def run(data: bytes) -> None:
        _ties.ties_words(_folder.read_config(MemoryPlace({"config.json": data}), ""))
        _side_files.adapted_config(data, {"BF16"}, untied=True)

    return run


def _seeds() -> list[bytes]:
    return [json.dumps(CONFIG).encode(), b"{}", b"[]", b"[" * 4000, b'{"a":' * 800 + b"1" + b"}" * 800]


def _mutate(data: bytes, most: int, random: Random) -> bytes:
    changed = _json.mutate_json(data, random, VALUES) if random.random() < 0.8 else None
    return bytes(atheris.Mutate(data, most)) if changed is None else changed


TARGET = Target("config", _prepare, _seeds, (_ties, _side_files, _folder), _mutate, max_bytes=16384)
