"""Small real models that the recipes of this folder speak of, by the names that they use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.adapters._loras import save_adapter
from tests.models._kinds import LLAMA
from tests.models._plain import seeded

LAYERS = 4


def _llama(seed: int, **changed: Any) -> transformers.PreTrainedModel:
    config = transformers.LlamaConfig(**{**LLAMA, "num_hidden_layers": LAYERS, "hidden_size": 16, **changed})
    return seeded(lambda: transformers.LlamaForCausalLM(config), seed)


def _seeing(seed: int) -> transformers.PreTrainedModel:
    text = {**LLAMA, "hidden_size": 16, "num_hidden_layers": 3, "model_type": "llama"}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"model_type": "clip_vision_model", "image_size": 8, "patch_size": 4, **sizes}
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=5)
    return seeded(lambda: transformers.LlavaForConditionalGeneration(config), seed)


def _tuned(model: transformers.PreTrainedModel, seed: int) -> transformers.PreTrainedModel:
    """Every number moved a little: no tensor, a norm's ones neither, is as it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def stock(shelf: Path) -> None:
    """``base`` and its fine-tunes ``a``, ``b``, ``c``; ``deep`` and ``wide`` of other sizes; ``tied``; ``vlm`` and
    ``vlm_a``, which see; ``lora``, an adapter of ``base``; ``cut``, a damaged folder; ``fewer``, whose configuration
    knows more layers than there are; ``flat``, which has none; ``t5``, which has two stacks of them."""
    for seed, name in enumerate(("base", "a", "b", "c")):
        _tuned(_llama(0), seed).save_pretrained(shelf / name)
    _tuned(_llama(0), 1).save_pretrained(shelf / "sharded", max_shard_size="10KB")
    _tuned(_llama(1, num_hidden_layers=LAYERS + 2), 5).save_pretrained(shelf / "deep")
    _llama(2, hidden_size=32).save_pretrained(shelf / "wide")
    for seed, name in enumerate(("tied", "tied_a")):
        _tuned(_llama(3, tie_word_embeddings=True), seed).save_pretrained(shelf / name)
    for seed, name in enumerate(("vlm", "vlm_a")):
        _tuned(_seeing(4), seed).save_pretrained(shelf / name)
    save_adapter(_llama(0), shelf / "lora", target_modules=["q_proj", "v_proj"])
    factors = load_file(shelf / "lora" / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(7)
    drawn = {name: torch.randn(factor.shape, generator=generator) / 8 for name, factor in factors.items()}
    save_file(drawn, shelf / "lora" / "adapter_model.safetensors", {"format": "pt"})
    config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    seeded(lambda: transformers.T5ForConditionalGeneration(config), 6).save_pretrained(shelf / "t5")
    _llama(0).save_pretrained(shelf / "fewer")
    few = {name: tensor for name, tensor in state(shelf / "fewer").items() if ".layers.3." not in name}
    save_file(few, shelf / "fewer" / "model.safetensors", {"format": "pt"})
    (shelf / "flat").mkdir()
    save_file({"w": torch.ones(2, 2)}, shelf / "flat" / "model.safetensors", {"format": "pt"})
    (shelf / "cut").mkdir()
    (shelf / "cut" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (shelf / "cut" / "model.safetensors").write_bytes((shelf / "a" / "model.safetensors").read_bytes()[:-100])


def state(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a model folder."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if file.name != "stockpot_geometry.safetensors":
            found.update(load_file(file))
    return found
