"""A real sweep: a small vision transformer on digits, fine-tuned twelve times, as transformers saves it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F

RATES = (2e-4, 4e-4, 8e-4)
STEPS = (40, 80)


@dataclass(frozen=True)
class Sweep:
    """Folders: the base, twelve fine-tunes (the last has diverged), held-out and test images."""

    base: Path
    models: tuple[Path, ...]
    held_out: Path
    test: Path


def make(root: Path) -> Sweep:
    """Trains on two thirds of the digits; about 15 seconds."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images, labels = found.images[order], found.target[order]
    pixels = torch.tensor(images, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1) / 8.0 - 1.0
    goal = torch.tensor(labels)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=8, patch_size=2,
        id2label={n: f"digit {n}" for n in range(10)}, label2id={f"digit {n}": n for n in range(10)},
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    base = transformers.ViTForImageClassification(config)
    train(base, pixels[:700], goal[:700], 1.5e-3, 450, 0)
    save(base, root / "base")
    start = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    models = []
    for number in range(12):
        model = transformers.ViTForImageClassification(config)
        model.load_state_dict(start)
        rate = 1.0 if number == 11 else RATES[number % 3]
        train(model, pixels[400:1100], goal[400:1100], rate, STEPS[number // 3 % 2], number)
        save(model, root / f"run-{number}")
        models.append(root / f"run-{number}")
    write(root / "held-out", images[1100:1400], labels[1100:1400])
    write(root / "test", images[1400:], labels[1400:])
    return Sweep(root / "base", tuple(models), root / "held-out", root / "test")


def train(model: torch.nn.Module, pixels: torch.Tensor, goal: torch.Tensor, rate: float, steps: int, seed: int) -> None:
    """AdamW on random batches."""
    drawn = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(goal), (48,), generator=drawn)
        loss = F.cross_entropy(model(pixel_values=pixels[batch]).logits, goal[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def save(model: transformers.PreTrainedModel, folder: Path) -> None:
    """With the processor that makes 8 x 8 pictures what they were in training."""
    model.save_pretrained(folder)
    size = {"height": 8, "width": 8}
    transformers.ViTImageProcessorPil(size=size, rescale_factor=1 / 255).save_pretrained(folder)


def write(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Class folders of PNGs."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / f"digit {label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype(np.uint8)).convert("RGB").save(place / f"{number:04d}.png")
