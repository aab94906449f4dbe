"""Recipes as the field writes them, and small models to run them on, of which every number is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from transformers import LlamaConfig, LlamaForCausalLM

MODELS = ("base", "one", "two", "three")
LAYERS = 4

RECIPES = {
    "linear-gradient": """
merge_method: linear
models:
  - model: one
    parameters: {weight: [0.2, 1.0]}
  - model: two
    parameters: {weight: [{filter: mlp, value: [0.9, 0.1, 0.4]}, {filter: embed_tokens, value: 0.25}, {value: 0.6}]}
dtype: float64
""",
    "linear-not-normalised": """
merge_method: linear
models:
  - model: one
    parameters: {weight: 0.7}
  - model: two
parameters:
  weight: [{filter: self_attn, value: 0.2}, {filter: "*", value: 0.5}]
  normalize: false
dtype: float64
""",
    "slerp-gradient": """
slices:
  - sources:
      - {model: one, layer_range: [0, 4]}
      - {model: two, layer_range: [0, 4]}
merge_method: slerp
base_model: one
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: float64
""",
    "slerp-models": """
merge_method: slerp
base_model: two
models:
  - model: one
  - model: two
parameters: {t: [0.1, 0.9]}
dtype: float64
""",
    "ties-gradient": """
models:
  - model: one
    parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}
  - model: two
    parameters: {density: 0.25, weight: [{filter: mlp, value: 0.5}, {value: 0.35}]}
  - model: base
  - model: three
    parameters: {density: [1.0, 0.5], weight: 0.8}
merge_method: ties
base_model: base
parameters: {normalize: true, int8_mask: true}
dtype: float64
""",
    "task-arithmetic": """
merge_method: task_arithmetic
base_model: base
models:
  - model: one
    parameters: {weight: [1.0, 0.0, 0.5]}
  - model: two
    parameters: {weight: [{filter: norm, value: 0}, {value: 0.4}]}
parameters: {lambda: 0.7}
dtype: float64
""",
    "stacked": """
slices:
  - sources: [{model: one, layer_range: [0, 3]}]
  - sources: [{model: two, layer_range: [1, 4]}]
merge_method: passthrough
dtype: float64
""",
    "stacked-scaled": """
slices:
  - sources: [{model: one, layer_range: [0, 2]}]
  - sources:
      - model: one
        layer_range: [1, 3]
        parameters: {scale: [{filter: o_proj, value: 0.0}, {filter: down_proj, value: 0.0}, {value: 1.0}]}
  - sources: [{model: one, layer_range: [2, 4]}]
merge_method: passthrough
dtype: float64
""",
    "slices-merged": """
slices:
  - sources:
      - {model: one, layer_range: [0, 1], parameters: {weight: [0.3, 0.6]}}
      - {model: two, layer_range: [3, 4]}
    parameters: {weight: 0.9}
  - sources:
      - {model: two, layer_range: [1, 4]}
      - {model: three, layer_range: [0, 3], parameters: {weight: [0.2, 0.8]}}
merge_method: linear
parameters: {weight: 0.5}
dtype: float64
""",
    "graph": """
name: first
merge_method: linear
models:
  - model: one
    parameters: {weight: 0.3}
  - model: two
    parameters: {weight: [0.7, 0.1]}
dtype: float64
---
name: second
merge_method: slerp
base_model: first
models:
  - model: first
  - model: three
parameters: {t: 0.25}
dtype: float64
---
merge_method: task_arithmetic
base_model: base
models:
  - model: first
    parameters: {weight: 0.6}
  - model: second
    parameters: {weight: 0.5}
dtype: float64
""",
}
"""Densities keep whole numbers of elements, about which nobody can differ."""


def make_models(folder: Path) -> None:
    """A base and three fine-tunes in float64 under their names, as folders that transformers loads."""
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=False,
    )  # fmt: skip
    config.dtype = torch.float64
    shapes = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    start: dict[str, np.ndarray] = {}
    for number, model in enumerate(MODELS):
        generator = np.random.default_rng(number)
        step = {name: generator.normal(size=shape) for name, shape in sorted(shapes.items())}
        start = start or step
        made = step if number == 0 else {name: start[name] + 0.5 * step[name] for name in step}
        (folder / model).mkdir()
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder / model)
        tensors = {name: torch.from_numpy(array) for name, array in made.items()}
        safetensors.torch.save_file(tensors, folder / model / "model.safetensors", {"format": "pt"})


def read(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a merged folder."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        found.update(safetensors.torch.load_file(path))
    return found


def sample(tensor: torch.Tensor) -> list[float]:
    """Some elements, and the sum: enough to know a tensor by."""
    flat = tensor.double().flatten()
    return [float(flat[place]) for place in (0, len(flat) // 3, 2 * len(flat) // 3, -1)] + [float(flat.sum())]
