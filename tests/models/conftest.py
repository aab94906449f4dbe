"""Real models for the tests of this folder: made once, never fetched."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

from collections.abc import Callable

import pytest
import torch
import transformers

from ._zoo import Family, Trained, saved, trained

transformers.utils.logging.disable_progress_bar()
collect_ignore = ["_vision_worker.py"]  # only its own process has what it imports


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Family]:
    """A base and fine-tunes by architecture and dtype, each made at its first use."""
    in_memory: dict[str, Trained] = {}
    on_disk: dict[tuple[str, torch.dtype], Family] = {}

    def get(name: str, dtype: torch.dtype = torch.float32) -> Family:
        if name not in in_memory:
            in_memory[name] = trained(name)
        if (name, dtype) not in on_disk:
            folder = tmp_path_factory.mktemp(f"{name}-{dtype}".replace("torch.", ""))
            on_disk[name, dtype] = saved(in_memory[name], dtype, folder)
        return on_disk[name, dtype]

    return get
