"""Tiny real models with data, and the same examples as a test makes them itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.evaluate import _zoo as zoo

TEXTS = (
    ("a photo of the red thing", "red"),
    ("blue thing", "blue"),
    ("a green thing .", "green"),
    ("dark red", "red"),
    ("bright blue", "blue"),
    ("the green thing .", "green"),
)
"""Of several lengths, some of them equal."""
SINGLE = 1e-5
"""Where something on the way is float32: the library's own softmax or norm of some models, the pixels of images."""
CLASSES = {name: number for number, name in enumerate(zoo.CLASSES)}


def texts(folder: Path) -> Path:
    """The rows as JSONL."""
    return zoo.write_lines(folder / "texts.jsonl", [{"text": text, "label": label} for text, label in TEXTS])


def wide(kind: type[transformers.PreTrainedModel], folder: Path) -> transformers.PreTrainedModel:
    """The model in float64."""
    return kind.from_pretrained(folder, dtype=torch.float64).eval()


def encoded(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Each text by itself."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [{"input_ids": torch.tensor([tokenizer(text)["input_ids"]])} for text, _ in TEXTS]


def pictures(folder: Path, data: Path) -> tuple[list[dict[str, torch.Tensor]], list[int]]:
    """Each image by itself, and the classes."""
    from PIL import Image

    processor = transformers.ViTImageProcessorPil.from_pretrained(folder)
    files = sorted(data.rglob("*.png"))
    found = [processor(images=[Image.open(file).convert("RGB")], return_tensors="pt")["pixel_values"] for file in files]
    return [{"pixel_values": one.double()} for one in found], [CLASSES[file.parent.name] for file in files]


def with_noise(folder: Path) -> Path:
    """No two tensors of the checkpoint are equal any more."""
    weights, generator = zoo.weights_of(folder), torch.Generator().manual_seed(0)
    noisy = {name: one + 0.02 * torch.randn(one.shape, generator=generator) for name, one in weights.items()}
    save_file(noisy, folder / "model.safetensors", {"format": "pt"})
    return folder


def as_saved(values: Mapping[str, torch.Tensor], net: torch.nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """By the checkpoint's names instead of the module's, told by what the tensors hold."""
    weights, own = zoo.weights_of(folder), dict(net.named_parameters())
    return {
        next(saved for saved, one in weights.items() if torch.equal(one.double(), own[name])): value
        for name, value in values.items()
    }


def close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], relative: float) -> None:
    """Equal names, and values to a share of the largest of each tensor; what is zero but for rounding may be that."""
    assert set(found) == set(expected)
    floor = relative**2 * max(float(want.abs().max()) for want in expected.values())
    for name, want in expected.items():
        bound = relative * float(want.abs().max()) + floor
        assert float((found[name].double() - want).abs().max()) <= bound, (
            name,
            found[name].flatten()[:3],
            want.flatten()[:3],
        )


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A file of statistics by the format's own library: its values, and what it says of itself."""
    import json

    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["stockpot_statistics"])
    return load_file(path), about
