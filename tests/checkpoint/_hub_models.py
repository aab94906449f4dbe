"""Models for the hub of the tests, as their files."""

from __future__ import annotations

import io
import json

import safetensors.torch
import torch

SIDE_FILES = {
    "config.json": b'{"model_type": "bert", "torch_dtype": "float32"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer/special.txt": b"[CLS]\n",
}
LEFT_OUT = {
    "README.md": b"# A model\n",
    "optimizer.pt": b"o" * 5000,
    "pytorch_model.bin": b"p" * 5000,
    "onnx/model.onnx": b"x" * 5000,
    ".gitattributes": b"*.bin filter=lfs\n",
}
"""What a merge has no use for."""


def tensors(seed: int, layers: int = 3, size: int = 200) -> dict[str, torch.Tensor]:
    """Float32, about 100 kB for each layer: much more than a header."""
    generator = torch.Generator().manual_seed(seed)
    return {f"layers.{n}.weight": torch.randn(size, 128, generator=generator) for n in range(layers)}


def plain(seed: int, **options: int) -> dict[str, bytes]:
    """One file of safetensors, and what lies beside it."""
    return {"model.safetensors": safetensors.torch.save(tensors(seed, **options)), **SIDE_FILES, **LEFT_OUT}


def sharded(seed: int) -> dict[str, bytes]:
    """The same in a file for each tensor, with an index."""
    files, weight_map = dict(SIDE_FILES), {}
    for number, (name, tensor) in enumerate(tensors(seed).items(), start=1):
        shard = f"model-{number:05}-of-00003.safetensors"
        files[shard], weight_map[name] = safetensors.torch.save({name: tensor}), shard
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return files


def pickled(seed: int) -> dict[str, bytes]:
    """The same as ``torch.save`` writes it."""
    return {"pytorch_model.bin": saved(tensors(seed)), **SIDE_FILES}


def saved(content: object) -> bytes:
    """``torch.save`` into memory."""
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def pipeline(seed: int) -> dict[str, bytes]:
    """Two parts with weights, one without, in subfolders."""
    index = {"_class_name": "P", "unet": ["d", "U"], "vae": ["d", "V"], "scheduler": ["d", "S"]}
    own = tensors(seed)
    return {
        "model_index.json": json.dumps(index).encode(),
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": safetensors.torch.save(own),
        "unet/diffusion_pytorch_model.bin": b"b" * 5000,
        "vae/config.json": b"{}",
        "vae/diffusion_pytorch_model.safetensors": safetensors.torch.save({"w": own["layers.0.weight"]}),
        "scheduler/scheduler_config.json": b"{}",
    }
