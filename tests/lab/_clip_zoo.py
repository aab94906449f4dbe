"""A tiny CLIP, its fine-tunes in every form, and generated images in the real layouts of ImageNet and its shifts."""

from __future__ import annotations

import io
import json
import math
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from stockpot.lab import ClipData
from stockpot.lab._clip_names import from_transformers

SIDE = 32
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WNIDS = tuple(f"n{1_440_000 + 911 * number:08d}" for number in range(1000))
R_CLASSES = tuple(range(3, 1000, 5))
A_CLASSES = tuple(range(1, 1000, 5))
TEMPLATES = ("a photo of a {}", "the {}")


def class_names() -> list[str]:
    """1000 of them, in ten words."""
    return [" ".join(DIGITS[int(digit)] for digit in f"{number:03d}") for number in range(1000)]


def save_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP of transformers with its tokenizer, two heads of 64 in its vision tower."""
    torch.manual_seed(seed)
    words = ["[PAD]", "[UNK]", "a", "photo", "of", "the", *DIGITS, "[END]"]
    text = {"vocab_size": len(words), "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
            "intermediate_size": 128, "max_position_embeddings": 16, "eos_token_id": 2}  # fmt: skip
    vision = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256,
              "image_size": SIDE, "patch_size": 8}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=48)
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [END]", special_tokens=[("[END]", len(words) - 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]", model_max_length=16
    ).save_pretrained(folder)
    return folder


def weights_of(folder: Path) -> dict[str, Tensor]:
    """What is on disk."""
    return load_file(folder / "model.safetensors")


def moved(weights: Mapping[str, Tensor], seed: int, by: float) -> dict[str, Tensor]:
    """As if fine-tuned: vision tower and classifier, the text tower left as it is."""
    drawn = torch.Generator().manual_seed(seed)
    return {
        name: tensor.clone()
        if name.startswith("text_") or name == "logit_scale"
        else tensor + by * tensor.std().nan_to_num() * torch.randn(tensor.shape, generator=drawn)
        for name, tensor in weights.items()
    }


def save_wrapped(path: Path, weights: Mapping[str, Tensor]) -> Path:
    """As the fine-tuning code of Model Soups saves it: ``model.`` before all, the blocks of the text tower gone."""
    found = from_transformers(weights, "wrapped")
    torch.save({name: own for name, own in found.items() if not name.startswith("model.transformer.")}, path)
    return path


def save_folder(folder: Path, base: Path, weights: Mapping[str, Tensor]) -> Path:
    """The base's folder with other weights."""
    shutil.copytree(base, folder)
    save_file({name: own.contiguous() for name, own in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def forward(weights: Mapping[str, Tensor], pixels: Tensor, heads: int) -> Tensor:
    """Features of the vision tower, from its definition (Radford et al., 2103.00020), by OpenAI's names, in float64."""
    own = {name: tensor.double() for name, tensor in weights.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / spread * own[f"{name}.weight"] + own[f"{name}.bias"]

    kernel = own["visual.conv1.weight"]
    width, _, patch, _ = kernel.shape
    cut = pixels.double().unfold(2, patch, patch).unfold(3, patch, patch)  # N, 3, rows, columns, patch, patch
    x = torch.einsum("ncijab,wcab->nijw", cut, kernel).flatten(1, 2)
    first = own["visual.class_embedding"].expand(len(x), 1, width)
    x = norm(torch.cat([first, x], 1) + own["visual.positional_embedding"], "visual.ln_pre")
    block = 0
    while f"visual.transformer.resblocks.{block}.ln_1.weight" in own:
        stem = f"visual.transformer.resblocks.{block}"
        qkv = norm(x, f"{stem}.ln_1") @ own[f"{stem}.attn.in_proj_weight"].T + own[f"{stem}.attn.in_proj_bias"]
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.split(width, dim=-1))
        shares = (q @ k.transpose(-1, -2) / math.sqrt(width // heads)).softmax(-1)
        mixed = (shares @ v).transpose(1, 2).flatten(2)
        x = x + mixed @ own[f"{stem}.attn.out_proj.weight"].T + own[f"{stem}.attn.out_proj.bias"]
        inner = norm(x, f"{stem}.ln_2") @ own[f"{stem}.mlp.c_fc.weight"].T + own[f"{stem}.mlp.c_fc.bias"]
        inner = inner * torch.sigmoid(1.702 * inner)
        x = x + inner @ own[f"{stem}.mlp.c_proj.weight"].T + own[f"{stem}.mlp.c_proj.bias"]
        block += 1
    return norm(x[:, 0], "visual.ln_post") @ own["visual.proj"]


def seen(path: Path) -> Tensor:
    """An image of the zoo as the model sees it: it has the model's own size."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()) / 255
    return ((pixels - mean) / deviation).permute(2, 0, 1)


@dataclass(frozen=True)
class Sets:
    """Every data set in one folder; the image of a class is the same in all of them."""

    root: Path
    objects: Mapping[str, tuple[int, ...]]

    @property
    def data(self) -> ClipData:
        """All of them."""
        root = self.root
        return ClipData(
            root / "imagenet",
            root / "imagenetv2",
            root / "sketch",
            root / "imagenet-r",
            root / "objectnet",
            root / "imagenet-a",
        )

    def image(self, number: int) -> Path:
        """Of a class."""
        return self.root / "imagenet" / "val" / WNIDS[number] / "ILSVRC2012_val_1.JPEG"


def save_sets(root: Path) -> Sets:
    """One image a class."""
    drawn = np.random.default_rng(0)
    for number, wnid in enumerate(WNIDS):
        blocks = drawn.integers(0, 256, (4, 4, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        buffer = io.BytesIO()
        Image.fromarray(blocks).save(buffer, "JPEG", quality=90)
        places = [
            root / "imagenet" / "val" / wnid / "ILSVRC2012_val_1.JPEG",
            root / "imagenetv2" / "imagenetv2-matched-frequency-format-val" / str(number) / "a.jpeg",
            root / "sketch" / "sketch" / wnid / "sketch_1.JPEG",
            root / "held-out" / wnid / "n_1.JPEG",
        ]
        places += [root / "imagenet-r" / "imagenet-r" / wnid / "art_0.jpg"] if number in R_CLASSES else []
        places += [root / "imagenet-a" / wnid / "0.000_one.jpg"] if number in A_CLASSES else []
        for place in places:
            place.parent.mkdir(parents=True)
            place.write_bytes(buffer.getvalue())
    (root / "imagenet-r" / "imagenet-r" / "README.txt").write_text("about\n")
    return Sets(root, _save_objectnet(root))


def _save_objectnet(root: Path) -> dict[str, tuple[int, ...]]:
    """113 objects, some of several classes, and one that ImageNet does not have; PNGs within a red border."""
    order = random.Random(0)
    numbers = order.sample(range(1000), 125)
    counts = [2] * 12 + [1] * 101
    objects: dict[str, tuple[int, ...]] = {}
    for place, count in enumerate(counts):
        own, numbers = numbers[:count], numbers[count:]
        objects[f"object_{place:03d}"] = tuple(sorted(own))
    images, mappings = (
        root / "objectnet" / "objectnet-1.0" / "images",
        root / "objectnet" / "objectnet-1.0" / "mappings",
    )
    for name, classes in objects.items():
        (images / name).mkdir(parents=True)
        for number in classes:
            inside = np.asarray(Image.open(root / "imagenet" / "val" / WNIDS[number] / "ILSVRC2012_val_1.JPEG"))
            framed = np.full((SIDE + 4, SIDE + 4, 3), (255, 0, 0), np.uint8)
            framed[2:-2, 2:-2] = inside
            Image.fromarray(framed).save(images / name / f"{number}.png")
    (images / "no_class_of_imagenet").mkdir()
    Image.new("RGB", (40, 40)).save(images / "no_class_of_imagenet" / "1.png")
    mappings.mkdir()
    own_numbers = list(range(1000))
    order.shuffle(own_numbers)  # PyTorch's number -> the number that ImageNet 2012 itself gives
    labels = {own: f"label {number}, synonym" for number, own in enumerate(own_numbers)}
    maps = {
        "folder_to_objectnet_label.json": {name: name.replace("_", " ").title() for name in objects}
        | {"no_class_of_imagenet": "No Class"},
        "objectnet_to_imagenet_1k.json": {
            name.replace("_", " ").title(): "; ".join(f"label {number}, synonym" for number in classes)
            for name, classes in objects.items()
        },
        "pytorch_to_imagenet_2012_id.json": {str(number): own for number, own in enumerate(own_numbers)},
    }
    for name, content in maps.items():
        (mappings / name).write_text(json.dumps(content))
    (mappings / "imagenet_to_label_2012_v2").write_text("\n".join(labels[own] for own in range(1000)) + "\n")
    return objects


@dataclass(frozen=True)
class Family:
    """A base with a classifier that knows every image of the sets, and fine-tunes of it in two forms."""

    clip: Path
    """Without a classifier: a CLIP as transformers writes it."""
    base: Path
    """The same with the classifier that knows."""
    base_weights: Mapping[str, Tensor]
    tuned: tuple[Path, ...]
    """As the fine-tuning code of Model Soups saves them."""
    folders: tuple[Path, ...]
    tuned_weights: tuple[Mapping[str, Tensor], ...]


def save_family(root: Path, sets: Sets) -> Family:
    """The classifier's row of a class is the feature of its image: on these images the base is always right."""
    clip = save_clip(root / "clip")
    weights = weights_of(clip)
    pixels = torch.stack([seen(sets.image(number)) for number in range(1000)])
    features = forward(from_transformers(weights, "open_clip"), pixels, heads=2)
    features = (features / features.norm(dim=1, keepdim=True)).float()
    weights |= {"classification_head.weight": 100 * features, "classification_head.bias": torch.zeros(1000)}
    base = save_folder(root / "base", clip, weights)
    tuned = tuple(moved(weights, seed, by) for seed, by in ((1, 0.012), (2, 0.02), (3, 0.04)))
    paths = tuple(save_wrapped(root / f"model_{number}.pt", own) for number, own in enumerate(tuned))
    folders = tuple(save_folder(root / f"run-{number}", base, own) for number, own in enumerate(tuned))
    return Family(clip, base, weights, paths, folders, tuned)
