"""Synthetic checkpoints: a base and fine-tunes that share a direction, of every kind of tensor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

Shape = tuple[int, ...]
SMALL: dict[str, tuple[Shape, torch.dtype]] = {
    "embed.weight": ((300, 24), torch.float32),
    "encoder.layer.0.attention.weight": ((48, 48), torch.float32),
    "encoder.layer.0.attention.bias": ((48,), torch.float32),
    "encoder.layer.0.conv.weight": ((16, 8, 3, 3), torch.bfloat16),
    "encoder.layer.1.attention.weight": ((48, 48), torch.float32),
    "encoder.layer.1.attention.bias": ((48,), torch.float32),
    "encoder.layer.1.wide.weight": ((3, 70_000), torch.bfloat16),
    "encoder.layer.1.half.weight": ((40, 40), torch.float16),
    "encoder.layer.1.double.weight": ((40, 40), torch.float64),
    "norm.scale": ((), torch.float32),
    "empty.weight": ((0, 5), torch.float32),
}
"""Name -> shape, dtype: 0-d to 4-D, empty, rows longer than a reduction block, every floating dtype."""


def tensors(
    spec: Mapping[str, tuple[Shape, torch.dtype]], model: int, *, spread: float = 0.02
) -> dict[str, torch.Tensor]:
    """A state dict; 0 is the base, 1 and up its fine-tunes. Each tensor depends on its own name and model alone."""
    found = {}
    for name, (shape, dtype) in spec.items():
        value = _normal(shape, name, "base")
        if model:
            shared, own = _normal(shape, name, "shared"), _normal(shape, name, f"model {model}")
            value = value + spread * (shared + own)
        found[name] = value.to(dtype)
    return found


def _normal(shape: Shape, *key: str) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256("\0".join(key).encode()).digest()[:4], "big")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def buffers(model: int) -> dict[str, torch.Tensor]:
    """What is copied, counted or averaged instead of merged."""
    return {
        "bn.running_mean": torch.full((8,), 0.1 * model),
        "bn.running_var": torch.full((8,), 1.0 + 0.01 * model),
        "bn.num_batches_tracked": torch.tensor(10 * model),
        "position_ids": torch.arange(64).reshape(1, 64),
        "mask": torch.ones(4, 4, dtype=torch.bool).tril(),
    }


def folder(path: Path, *shards: Mapping[str, torch.Tensor], config: Mapping[str, object] | None = None) -> Path:
    """A folder of one or several shards, with index and config."""
    path.mkdir(parents=True)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(dict(shard), path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    (path / "config.json").write_text(json.dumps(dict(config or {"model_type": "test", "dtype": "float32"})), "utf-8")
    return path


def contents(out: Path) -> dict[str, bytes]:
    """Digest of every file of an output; what may differ between runs (time, host) is left out."""
    found = {}
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        data = file.read_bytes()
        if file.name == "stockpot_run.json":
            continue
        if file.name == "SHA256SUMS":
            data = b"".join(line for line in data.splitlines(keepends=True) if b"stockpot_run.json" not in line)
        found[str(file.relative_to(out))] = hashlib.sha256(data).digest()
    return found
