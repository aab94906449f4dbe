"""Files of statistics for any models: values that follow from a tensor's name, its shape and the model's place."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from stockpot.methods import get_method

MOST_INPUTS = 1100
Models = Sequence[Path | Mapping[str, torch.Tensor]]
_MADE: dict[object, dict[str, Any]] = {}


def fisher(name: str, shape: Sequence[int], number: int) -> torch.Tensor:
    """Values of zero and more, a tenth of them zero in any model."""
    drawn = torch.randn(tuple(shape), generator=_seeded(name, number))
    return torch.where(drawn.abs() < 0.12, torch.zeros(()), drawn.square())


def gram(name: str, inputs: int, number: int) -> torch.Tensor:
    """X^T X of seeded rows, more of them than columns."""
    rows = torch.randn(inputs + 3, inputs, generator=_seeded(name, number), dtype=torch.float64)
    return rows.T @ rows


def statistics_of(method: str, models: Models) -> dict[str, Any]:
    """The parameter that names the files, one for each model; made beside the first of them, or before."""
    wanted = get_method(method).statistics
    if wanted is None:
        return {}
    shapes = [{name: tuple(one.shape) for name, one in tensors(model).items() if _is_real(one)} for model in models]
    key = (method, tuple(tuple(sorted(own.items())) for own in shapes))
    if key not in _MADE:
        (first, *_) = models
        assert isinstance(first, Path), "the same models as files come first"
        files = []
        for number, own in enumerate(shapes):
            values = (
                {name: fisher(name, shape, number) for name, shape in own.items()}
                if wanted.streamed
                else {
                    name: gram(name, shape[1], number)
                    for name, shape in own.items()
                    if len(shape) == 2 and 0 < shape[1] <= MOST_INPUTS
                }
            )
            files.append(str(first.parent / f"{first.stem}-{method}-{number}.safetensors"))
            save_file(values, files[-1])
        _MADE[key] = {wanted.parameter: files}
    return _MADE[key]


def tensors(model: Path | Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """All of a model."""
    if not isinstance(model, Path):
        return model
    files = [model] if model.is_file() else sorted(model.glob("*.safetensors"))
    return {name: one for file in files for name, one in load_file(file).items()}


def _is_real(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() > 1


def _seeded(name: str, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{name}/{number}".encode()))
