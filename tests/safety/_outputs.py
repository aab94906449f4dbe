"""One tiny output of every kind that stockpot makes, with the inputs that it was made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

import stockpot
from stockpot import soups

Tensors = Mapping[str, torch.Tensor]
SHAPES = {"layers.0.weight": (3, 2), "layers.1.weight": (2, 2), "norm.weight": (3,)}


def tensors(number: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The base (0), or a fine-tune of it."""
    found = {}
    for place, (name, shape) in enumerate(SHAPES.items()):
        base, own = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (place, 9 * number))
        found[name] = (base + 0.1 * bool(number) * (1.0 + own)).to(dtype)
    return found


def model(folder: Path, weights: Tensors, stem: str = "model", shards: int = 1) -> Path:
    """A folder with a config and a tokenizer beside its weights."""
    folder.mkdir(parents=True)
    names = list(weights)
    if shards == 1:
        save_file(dict(weights), folder / f"{stem}.safetensors", {"format": "pt"})
    else:
        files = {
            name: f"{stem}-{min(n, shards - 1) + 1:05d}-of-{shards:05d}.safetensors" for n, name in enumerate(names)
        }
        for file in set(files.values()):
            save_file({n: weights[n] for n in names if files[n] == file}, folder / file, {"format": "pt"})
        index = {"metadata": {"total_size": 0}, "weight_map": files}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "tiny", "dtype": "float32"}')
    (folder / "tokenizer.json").write_text('{"words": {"a": 1}}')
    return folder


def models(root: Path) -> list[Path]:
    """A base and two fine-tunes."""
    return [model(root / name, tensors(number)) for number, name in enumerate(("base", "a", "b"))]


def adapter(folder: Path, number: int) -> Path:
    """A LoRA adapter of rank 1 on two layers."""
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(number)
    weights = {}
    for name in ("layers.0", "layers.1"):
        rows, columns = SHAPES[f"{name}.weight"]
        weights[f"base_model.model.{name}.lora_A.weight"] = torch.randn(1, columns, generator=draw)
        weights[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, 1, generator=draw)
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    stated = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["layers.0", "layers.1"]}
    (folder / "adapter_config.json").write_text(json.dumps(stated))
    return folder


def pipeline(folder: Path, number: int) -> Path:
    """A checkpoint of parts as diffusers lays it out; one of them in shards."""
    stem = "diffusion_pytorch_model"
    model(folder / "unet", tensors(number), stem, shards=2)
    model(folder / "vae", {"decoder.weight": 2.0 * tensors(number)["norm.weight"]}, stem)
    parts = {"_class_name": "Tiny", "unet": ["diffusers", "UNet"], "vae": ["diffusers", "VAE"]}
    (folder / "model_index.json").write_text(json.dumps(parts))
    return folder


def _stock(suffix: str, **options: object) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        base, *rest = models(root)
        return _merged("model_stock", root / f"out{suffix}", base=base, models=rest, **options)

    return make


def _merged(method: str, out: Path, **options: object) -> Path:
    return stockpot.merge(method, out=out, **options).out  # type: ignore[arg-type]


def _parts(root: Path) -> Path:
    base, *rest = (pipeline(root / name, number) for number, name in enumerate(("base", "a", "b")))
    return _merged("model_stock", root / "out", base=base, models=rest)


def _adapters(root: Path) -> Path:
    return _merged("linear", root / "out", models=[adapter(root / "one", 1), adapter(root / "two", 2)])


def _adapted(root: Path) -> Path:
    base = model(root / "base", tensors(0))
    on_it = [f"{base}+{adapter(root / name, number)}" for number, name in enumerate(("one", "two"), 1)]
    return _merged("model_stock", root / "out", base=base, models=on_it)


def _last(root: Path) -> Path:
    for number in (1, 2, 3):
        model(root / "run" / f"checkpoint-{number}", tensors(number))
    return _merged("linear", root / "out", models=stockpot.last_checkpoints(root / "run", 2))


def _policies(root: Path) -> Path:
    base, one, two = models(root)
    extra = tensors(1) | {"more.weight": torch.ones(2), "wide.weight": torch.ones(2, 2), "steps": torch.tensor(3)}
    for folder, weights in (
        (base, {"wide.weight": torch.ones(2, 2)}),
        (one, {}),
        (two, {"wide.weight": torch.ones(3)}),
    ):
        found = extra | (tensors(2) if folder is two else {}) | weights
        if folder is not one:
            del found["more.weight"]
        save_file(found, folder / "model.safetensors", {"format": "pt"})
    return _merged(
        "model_stock", root / "out", base=base, models=[one, two], missing="average", mismatch="first", exclude=["norm"]
    )  # fmt: skip


def _soup(root: Path) -> Path:
    _, *rest = models(root)
    wanted = tensors(1)["norm.weight"]
    found = soups.greedy(rest, lambda weights: -float((weights["norm.weight"] - wanted).norm()), out=root / "out")
    assert found.out is not None
    return found.out


def _pickled_inputs(root: Path) -> Path:
    for number, name in enumerate(("a", "b"), 1):
        weights = tensors(number)
        torch.save({"state_dict": weights | {"head.weight": weights["layers.1.weight"]}}, root / f"{name}.pt")
    return _merged("linear", root / "out.pt", models=[root / "a.pt", root / "b.pt"])


OUTPUTS: dict[str, Callable[[Path], Path]] = {
    "folder": _stock(""),
    "shards": _stock("", shard_size="20B", dtype="bfloat16"),
    "rows": _stock("", granularity="row"),
    "parts": _parts,
    "one.safetensors": _stock(".safetensors"),
    "one.pt": _stock(".pt"),
    "tied.pt": _pickled_inputs,
    "adapters": _adapters,
    "adapted": _adapted,
    "last": _last,
    "policies": _policies,
    "soup": _soup,
}
"""Kind -> what makes one in a folder, and says where it is."""
