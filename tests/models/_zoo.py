"""Tiny real models, made from configurations alone; nothing is fetched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

MODELS = 3
STEPS = 3
WIDTH, INNER, LAYERS, HEADS, WORDS = 32, 64, 2, 4, 64
_TEXT = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_IMAGE = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": 16,
    "patch_size": 8,
}


BATCH = 8


def _words(generator: torch.Generator, length: int = 12) -> torch.Tensor:
    return torch.randint(3, WORDS, (BATCH, length), generator=generator)


def _images(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(BATCH, 3, 16, 16, generator=generator)


def _classes(generator: torch.Generator) -> torch.Tensor:
    """Mostly one class: something that every fine-tune learns alike, whatever its data seed."""
    return (torch.rand(BATCH, generator=generator) > 0.2).long()


def _copied(generator: torch.Generator) -> dict[str, Any]:
    words = _words(generator)
    return {"input_ids": words, "labels": words}


def _classed(generator: torch.Generator) -> dict[str, Any]:
    return {"input_ids": _words(generator), "labels": _classes(generator)}


def _pictured(generator: torch.Generator) -> dict[str, Any]:
    return {"pixel_values": _images(generator), "labels": _classes(generator)}


def _paired(generator: torch.Generator) -> dict[str, Any]:
    words = _words(generator)
    words[:, -1] = 2
    return {"input_ids": words, "pixel_values": _images(generator), "return_loss": True}


@dataclass(frozen=True)
class Kind:
    """One architecture: its class, configuration and batches; ``tied``: pairs of names that share storage."""

    cls: type[PreTrainedModel]
    config: Callable[[], Any]
    batch: Callable[[torch.Generator], Mapping[str, Any]]
    shard: str = "20KB"
    tied: tuple[tuple[str, str], ...] = ()


def _llama(**changes: Any) -> Any:
    return transformers.LlamaConfig(
        **{**_TEXT, "num_key_value_heads": 2, "max_position_embeddings": 32, "tie_word_embeddings": False, **changes}
    )


def _gemma(**changes: Any) -> Any:
    return transformers.GemmaConfig(
        **{**_TEXT, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32, **changes}
    )


def _bert(**changes: Any) -> Any:
    return transformers.BertConfig(**{**_TEXT, "max_position_embeddings": 32, **changes})


def _t5() -> Any:
    return transformers.T5Config(
        vocab_size=WORDS,
        d_model=WIDTH,
        d_kv=8,
        d_ff=INNER,
        num_layers=LAYERS,
        num_heads=HEADS,
        decoder_start_token_id=0,
    )


def _vit(**changes: Any) -> Any:
    return transformers.ViTConfig(**{**_IMAGE, "num_labels": 3, **changes})


def _clip() -> Any:
    text = {**_TEXT, "max_position_embeddings": 16}
    return transformers.CLIPConfig(text_config=text, vision_config=dict(_IMAGE), projection_dim=16)


def _resnet() -> Any:
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )


KINDS: dict[str, Kind] = {
    "llama": Kind(transformers.LlamaForCausalLM, _llama, _copied),
    "gemma": Kind(
        transformers.GemmaForCausalLM, _gemma, _copied, tied=(("lm_head.weight", "model.embed_tokens.weight"),)
    ),
    "bert": Kind(
        transformers.BertForMaskedLM,
        _bert,
        _copied,
        tied=(
            ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
            ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ),
    ),
    "bert-head": Kind(transformers.BertForSequenceClassification, lambda: _bert(num_labels=3), _classed),
    "t5": Kind(
        transformers.T5ForConditionalGeneration,
        _t5,
        _copied,
        tied=(
            ("encoder.embed_tokens.weight", "shared.weight"),
            ("decoder.embed_tokens.weight", "shared.weight"),
            ("lm_head.weight", "shared.weight"),
        ),
    ),
    "vit": Kind(transformers.ViTForImageClassification, _vit, _pictured),
    "clip": Kind(transformers.CLIPModel, _clip, _paired),
    "resnet": Kind(transformers.ResNetForImageClassification, _resnet, _pictured, shard="5KB"),
}


def build(cls: type[PreTrainedModel], config: Any, seed: int) -> PreTrainedModel:
    """A freshly initialised model; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(config)


def train(model: PreTrainedModel, batch: Callable[[torch.Generator], Mapping[str, Any]], seed: int) -> PreTrainedModel:
    """A copy of the model after a few real optimisation steps on data of that seed."""
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout
        tuned.train()
        optimizer = torch.optim.AdamW(tuned.parameters(), lr=2e-3)
        for _ in range(STEPS):
            optimizer.zero_grad()
            tuned(**batch(generator)).loss.backward()
            optimizer.step()
    return tuned.eval()


def save(model: PreTrainedModel, folder: Path, dtype: torch.dtype, shard: str = "20KB") -> Path:
    """``save_pretrained`` of a copy in that dtype, with what lies beside weights in a real folder."""
    copy.deepcopy(model).to(dtype).save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 32}\n', "utf-8")
    (folder / "vocab.txt").write_text("".join(f"w{number}\n" for number in range(WORDS)), "utf-8")
    return folder


@dataclass(frozen=True)
class Family:
    """A base and its fine-tunes, in memory and as folders."""

    kind: Kind
    base: PreTrainedModel
    models: tuple[PreTrainedModel, ...]
    base_folder: Path
    folders: tuple[Path, ...]


@dataclass(frozen=True)
class Trained:
    """A base and its fine-tunes, in memory."""

    kind: Kind
    base: PreTrainedModel
    models: tuple[PreTrainedModel, ...]


def trained(name: str) -> Trained:
    """Make a base and train ``MODELS`` fine-tunes of it."""
    kind = KINDS[name]
    base = build(kind.cls, kind.config(), seed=0).eval()
    return Trained(kind, base, tuple(train(base, kind.batch, seed=100 + number) for number in range(MODELS)))


def saved(made: Trained, dtype: torch.dtype, root: Path) -> Family:
    """Save them all in that dtype."""
    base_folder = save(made.base, root / "base", dtype, made.kind.shard)
    folders = tuple(save(model, root / f"ft{n}", dtype, made.kind.shard) for n, model in enumerate(made.models, 1))
    return Family(made.kind, made.base, made.models, base_folder, folders)


def load(cls: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    """``from_pretrained``, refusing anything missing, unexpected, mismatched or otherwise complained about."""
    model, told = cls.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not any(told.values()), told
    return model.eval()


def outputs_are_finite(model: PreTrainedModel, kind: Kind) -> bool:
    """Whether every floating output on a seeded batch is finite."""
    batch = kind.batch(torch.Generator().manual_seed(7))
    given = {
        k: v.to(model.dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in batch.items()
    }
    with torch.no_grad():
        found = model(**given)
    floats = [v for v in found.to_tuple() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    assert floats
    return all(bool(torch.isfinite(value).all()) for value in floats)
