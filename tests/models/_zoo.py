"""Families of tiny real models of transformers: made, fine-tuned, saved, loaded; nothing is fetched."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ._kinds import WORDS, Batch, Kind
from ._plain import seeded, tuned
from ._senses import KINDS

MODELS = 3


def build(cls: type[PreTrainedModel], config: Any, seed: int) -> PreTrainedModel:
    """A freshly initialised model."""
    return seeded(lambda: cls(config), seed)


def train(model: PreTrainedModel, batch: Batch, seed: int) -> PreTrainedModel:
    """A copy of the model, fine-tuned on data of that seed."""
    return tuned(model, lambda own, generator: own(**batch(generator)).loss, seed)


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
