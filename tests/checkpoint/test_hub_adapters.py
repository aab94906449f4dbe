"""LoRA adapters by Hub ids: with their base, and with one another."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

import stockpot

from ._hub_models import plain, tensors
from ._hub_stub import Hub


def test_a_base_and_its_adapter_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    """Both are opened by headers, downloaded when the plan stands, recorded, and proven at their commits."""
    factors = {
        "base_model.model.layers.0.lora_A.weight": torch.ones(2, 128),
        "base_model.model.layers.0.lora_B.weight": torch.ones(200, 2),
    }
    adapter = {
        "adapter_config.json": b'{"peft_type": "LORA", "r": 2, "lora_alpha": 4}',
        "adapter_model.safetensors": safetensors.torch.save(factors),
    }
    commits = [hub.add("org/base", plain(0)), hub.add("org/lora", adapter)]
    both = stockpot.open_checkpoint("org/base+org/lora")
    assert both.commit == "+".join(commits)
    assert sum(both.downloads(side_files=False).values()) == sum(
        len(data) for data in (plain(0)["model.safetensors"], adapter["adapter_model.safetensors"])
    )
    assert hub.whole() == []
    recipe = stockpot.Recipe.from_data(
        {"merge_method": "linear", "models": [{"model": "org/base+org/lora"}, {"model": "org/base"}]}
    )
    shared = stockpot.plan(recipe, out=tmp_path / "out").bytes_to_download
    beside = shared - sum(both.downloads(side_files=False).values())
    assert 0 <= beside < len(plain(0)["model.safetensors"])  # side files; the base's weights are counted once
    stockpot.merge("linear", models=["org/base", "org/base+org/lora"], out=tmp_path / "out")
    before = tensors(0)["layers.0.weight"].double()
    merged = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(merged["layers.0.weight"], (before + 2).float())
    assert "- org/base\n- org/lora\n" in (tmp_path / "out" / "README.md").read_text()
    hub.add("org/lora", adapter | {"config.json": b"{}"})
    found = stockpot.verify(tmp_path / "out", recompute=1.0)
    assert (found.problems, found.recomputed) == ((), 3)
    assert [note.partition(":")[0] for note in found.notes] == ["org/lora"]


def test_adapters_on_the_hub_become_one(hub: Hub, tmp_path: Path) -> None:
    """Adapters are downloaded when the plan stands; their base, which is not needed, is not."""
    for number in range(2):
        factors = {
            "base_model.model.layers.0.lora_A.weight": torch.full((2, 128), number + 1.0),
            "base_model.model.layers.0.lora_B.weight": torch.ones(200, 2),
        }
        files = {
            "adapter_config.json": b'{"peft_type": "LORA", "r": 2, "lora_alpha": 2}',
            "adapter_model.safetensors": safetensors.torch.save(factors),
        }
        hub.add(f"org/lora{number}", files)
    stockpot.merge("linear", models=["org/lora0", "org/lora1"], out=tmp_path / "out")
    found = safetensors.torch.load_file(tmp_path / "out" / "adapter_model.safetensors")
    a, b = (found[f"base_model.model.layers.0.lora_{role}.weight"].double() for role in "AB")
    assert torch.allclose(b @ a, torch.full((200, 128), 3.0, dtype=torch.float64), rtol=1e-6)
    assert [said["commit"] for said in json.loads((tmp_path / "out" / "stockpot.json").read_text())["inputs"]] == [
        hub.models[f"org/lora{number}"].revisions["main"] for number in range(2)
    ]
    assert stockpot.verify(tmp_path / "out", recompute=1.0).problems == ()
