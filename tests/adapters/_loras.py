"""Real adapters: PEFT on tiny transformers models, with factors that do something, saved by PEFT."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.models._zoo import KINDS, build

from stockpot.checkpoint import Source

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft


def _gpt2() -> Any:
    return transformers.GPT2Config(
        vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Lora:
    """One way to use LoRA: the model, and what the configuration says."""

    cls: type[transformers.PreTrainedModel]
    config: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


_LLAMA = (KINDS["llama"].cls, KINDS["llama"].config)
_BERT = (KINDS["bert-head"].cls, KINDS["bert-head"].config)
LORAS: dict[str, Lora] = {
    "plain": Lora(*_LLAMA, {"target_modules": ["q_proj", "v_proj"]}),
    "bf16": Lora(*_LLAMA, {"target_modules": ["q_proj", "down_proj"]}, torch.bfloat16),
    "all-linear": Lora(*_LLAMA, {"target_modules": "all-linear", "r": 5, "lora_alpha": 3}, torch.float16),
    "rslora": Lora(*_LLAMA, {"target_modules": ["o_proj"], "use_rslora": True, "r": 3, "lora_alpha": 7}),
    "patterns": Lora(
        *_LLAMA,
        {
            "target_modules": ["q_proj", "k_proj", "up_proj"],
            "rank_pattern": {"q_proj": 2, r"^model\.layers\.1\..*up_proj": 6},
            "alpha_pattern": {"k_proj": 1, r"layers\.0\.self_attn\.q_proj": 32},
        },
    ),
    "embedding": Lora(*_LLAMA, {"target_modules": ["embed_tokens", "lm_head"]}),
    "modules": Lora(*_LLAMA, {"target_modules": ["gate_proj"], "modules_to_save": ["norm", "lm_head"]}),
    "conv1d": Lora(
        transformers.GPT2LMHeadModel, _gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    ),
    "bias-all": Lora(*_BERT, {"target_modules": ["query"], "bias": "all"}),
    "bias-lora": Lora(*_BERT, {"target_modules": ["value"], "bias": "lora_only"}),
    "lora-bias": Lora(*_BERT, {"target_modules": ["query", "dense"], "lora_bias": True}),
    "conv2d": Lora(KINDS["resnet"].cls, KINDS["resnet"].config, {"target_modules": ["convolution"]}),
    "pickled": Lora(*_LLAMA, {"target_modules": ["q_proj"]}),
}


def base_model(name: str) -> transformers.PreTrainedModel:
    """The base, untouched."""
    lora = LORAS[name]
    return build(lora.cls, lora.config(), seed=0).to(lora.dtype).eval()


def adapted_model(name: str, seed: int) -> Any:
    """The base with an adapter whose every number was drawn anew, as training would leave none at zero."""
    lora = LORAS[name]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)  # PEFT draws A
        model = peft.get_peft_model(base_model(name), peft.LoraConfig(**{"r": 4, **lora.options}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                parameter.add_((0.1 * noise).to(parameter.dtype))
    return model.eval()


def save(name: str, root: Path, adapters: int = 2) -> tuple[Path, list[Path]]:
    """The base's folder and the adapters'."""
    base = root / "base"
    base_model(name).save_pretrained(base)
    folders = []
    for seed in range(1, adapters + 1):
        folder = root / f"adapter{seed}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted_model(name, seed).save_pretrained(folder, safe_serialization=name != "pickled")
        folders.append(folder)
    return base, folders


def merged_by_peft(name: str, seed: int) -> dict[str, torch.Tensor]:
    """What PEFT makes of base and adapter in float64: every product and sum in wide arithmetic."""
    wide = copy.deepcopy(adapted_model(name, seed)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(wide.merge_and_unload().state_dict())


def save_adapter(model: transformers.PreTrainedModel, folder: Path, seed: int = 0, **options: Any) -> None:
    """An adapter of a model, as it begins."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        peft.get_peft_model(model, peft.LoraConfig(**{"r": 2, **options})).save_pretrained(folder)


CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def values(source: Source, name: str) -> torch.Tensor:
    """A tensor of a source."""
    info = source.tensors[name]
    room = bytearray(info.nbytes)
    source.read_into(info, 0, memoryview(room))
    dtype = {"F64": torch.float64, "I64": torch.int64, **{code: dtype for dtype, code in CODES.items()}}[info.dtype]
    return torch.frombuffer(room, dtype=dtype).reshape(info.shape)


def change(adapter: Path, **stated: Any) -> None:
    """Say other things in the adapter's configuration."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **stated}))


def edit(adapter: Path, **changes: torch.Tensor | None) -> None:
    """Put tensors into an adapter; ``__`` stands for a point, None takes one away."""
    path = adapter / "adapter_model.safetensors"
    state: dict[str, torch.Tensor | None] = {**load_file(path)}
    for name, tensor in changes.items():
        state[f"base_model.model.{name.replace('__', '.')}"] = tensor
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path, {"format": "pt"})
