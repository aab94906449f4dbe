"""LoRA adapters: what ``adapter_config.json`` says."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from random import Random

import atheris

from fuzz import _json
from fuzz._target import Run, Target
from stockpot.adapters import _adapted, _open, _peft
from stockpot.checkpoint import _header, open_checkpoint

_MODULES = ("layers.0.q_proj", "layers.1.q_proj", "layers.1.up_proj")
_TENSORS = [
    *((f"base_model.model.{m}.lora_A.weight", "F32", (2, 3)) for m in _MODULES),
    *((f"base_model.model.{m}.lora_B.weight", "F32", (4, 2)) for m in _MODULES),
]
CONFIG = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "use_rslora": False, "bias": "none",
    "rank_pattern": {"up_proj": 2, r"^layers\.1\..*q_proj": 2}, "alpha_pattern": {"layers.0.q_proj": 8},
    "fan_in_fan_out": False, "init_lora_weights": True, "task_type": "CAUSAL_LM", "modules_to_save": None,
}  # fmt: skip
VALUES = (
    *_json.VALUES, *_MODULES, *CONFIG, "(a+)+$", "(.*)*x", "[", "(?P<a>x)", "(" * 200, "pissa", "LORA", "use_dora",
    ".*" * 9,
)  # fmt: skip


def _weights(names: Sequence[tuple[str, str, tuple[int, ...]]]) -> bytes:
    return _header.build(names, {}) + bytes(sum(4 * shape[0] * shape[-1] for _, _, shape in names))


def _prepare(folder: Path) -> Run:
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    adapter.mkdir()
    (base / "model.safetensors").write_bytes(_weights([(f"{module}.weight", "F32", (4, 3)) for module in _MODULES]))
    (adapter / "adapter_model.safetensors").write_bytes(_weights(_TENSORS))
    config = os.open(adapter / "adapter_config.json", os.O_RDWR | os.O_CREAT, 0o600)
    opened = open_checkpoint(base)

    def run(data: bytes) -> None:
        os.ftruncate(config, 0)
        os.pwrite(config, data, 0)
        source = _adapted.adapted("base+adapter", opened, _peft.read_adapter(open_checkpoint(adapter)))
        for info in source.tensors.values():
            source.read_into(info, 0, memoryview(bytearray(info.nbytes)))

    return run


def _seeds() -> list[bytes]:
    others: Sequence[object] = (
        {},
        {"peft_type": "LOHA"},
        {**CONFIG, "use_dora": True},
        {**CONFIG, "lora_alpha": 1e400},
        [],
        None,
    )
    return [json.dumps(stated).encode() for stated in (CONFIG, *others)]


def _mutate(data: bytes, most: int, random: Random) -> bytes:
    changed = _json.mutate_json(data, random, VALUES) if random.random() < 0.8 else None
    return bytes(atheris.Mutate(data, most)) if changed is None else changed


TARGET = Target("adapter", _prepare, _seeds, (_peft, _adapted, _open), _mutate)
