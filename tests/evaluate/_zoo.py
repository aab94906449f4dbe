"""Tiny real models of transformers with processors and tokenizers, saved as the library saves them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "photo",
    "of",
    "red",
    "green",
    "blue",
    "bright",
    "dark",
    "the",
    "thing",
    ".",
]
CLASSES = ("blue", "green", "red")


def save_tokenizer(folder: Path, *, bert: bool = True) -> None:
    """Words by white space."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bert:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]", model_max_length=32
    )
    fast.save_pretrained(folder)


def save_images(folder: Path, *, per_class: int = 6, classes: Sequence[str] = CLASSES, seed: int = 0) -> Path:
    """Class folders of noisy plain colours."""
    generator = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for place in range(per_class):
            pixels = generator.integers(0, 90, (20, 24, 3))
            pixels[..., 2 - number % 3] += 140
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{place}.png")
    return folder


def vit(folder: Path, seed: int = 0, *, labels: Sequence[str] = CLASSES, hidden: int = 24) -> Path:
    """An image classifier with its processor."""
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=16,
        patch_size=4,
        id2label=dict(enumerate(labels)), label2id={name: number for number, name in enumerate(labels)},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessorPil(size=size).save_pretrained(folder)
    return folder


def clip(folder: Path) -> Path:
    """A CLIP with processor and tokenizer."""
    torch.manual_seed(1)
    text = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 32, "max_position_embeddings": 32, "eos_token_id": 3}  # fmt: skip
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
              "image_size": 16, "patch_size": 4}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    size = {"shortest_edge": 16}
    crop = {"height": 16, "width": 16}
    transformers.CLIPImageProcessorPil(size=size, crop_size=crop).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def bert(folder: Path, *, labels: Sequence[str] = CLASSES) -> Path:
    """A sequence classifier."""
    torch.manual_seed(2)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, id2label=dict(enumerate(labels)),
        label2id={name: number for number, name in enumerate(labels)},
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def gpt(folder: Path) -> Path:
    """A causal language model that sees 16 tokens, its head tied to its embedding."""
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=2, eos_token_id=3
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder, bert=False)
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """What is on disk."""
    return load_file(folder / "model.safetensors")


def write_lines(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    """JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def llama(folder: Path) -> Path:
    """A causal language model with a head of its own."""
    torch.manual_seed(4)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=False, pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, bert=False)
    return folder
