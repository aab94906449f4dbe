"""A module's weights as maps of tensors: what training changes, copied out and copied back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stockpot import errors
from stockpot.checkpoint import TORCH_NAMES, Source
from stockpot.kernels import DTYPES, Row, first_nonfinite

Weights = dict[str, Tensor]


def unwrapped(model: nn.Module) -> nn.Module:
    """The module itself, out of DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(inner := model.__dict__.get("_modules", {}).get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def trained(model: nn.Module) -> Weights:
    """The state dict's own tensors by name, without parameters that do not ask for gradients; tied names share one.

    Of tensors over several processes (FSDP2): the parts that lie here.
    """
    inner = unwrapped(model)
    frozen = {name for name, own in inner.named_parameters(remove_duplicate=False) if not own.requires_grad}
    found = {}
    for name, tensor in inner.state_dict(keep_vars=True).items():
        if name not in frozen and isinstance(tensor, Tensor):
            found[name] = local(tensor.detach())
    return found


def is_sharded(model: nn.Module) -> bool:
    """Whether its parameters lie over several processes (FSDP2)."""
    return any(_is_distributed(own) for own in unwrapped(model).parameters())


@dataclass(frozen=True)
class Part:
    """What this process holds of a tensor: ``tensor``; of the whole, its ``shape`` and the element it begins at."""

    tensor: Tensor
    shape: tuple[int, ...]
    first: int

    def read(self, source: Source, name: str, start: int, stop: int) -> Tensor:
        """The same elements of a checkpoint, ``start`` to ``stop`` of this part; flat."""
        info = source.tensors.get(source.aliases.get(name, name))
        if info is None:
            raise errors.MissingTensorError("the anchor lacks a tensor of the model", tensor=name, file=source.ref)
        if tuple(info.shape) != self.shape:
            raise errors.MismatchError(
                "the anchor has another shape", tensor=name, file=source.ref, expected=list(self.shape),
                got=list(info.shape),
            )  # fmt: skip
        dtype: torch.dtype = getattr(torch, TORCH_NAMES[info.dtype])
        found = torch.empty(stop - start, dtype=dtype)
        if stop > start:
            room: NDArray[np.uint8] = found.view(torch.uint8).numpy()
            source.read_into(info, (self.first + start) * dtype.itemsize, room.data)
        return found


def parts(model: nn.Module) -> dict[str, Part]:
    """What this process holds of all that training changes; one name for each tensor.

    Raises UsageError for tensors that are not cut along their rows, which fully_shard never makes by itself.
    """
    inner = unwrapped(model)
    own = trained(inner)
    same = aliases(own)
    whole = inner.state_dict(keep_vars=True)
    return {name: part_of(name, whole[name], tensor) for name, tensor in own.items() if name not in same}


def part_of(name: str, whole: Any, here: Tensor) -> Part:
    """Where a process's part lies in the whole tensor."""
    shape = tuple(whole.shape)
    if not _is_distributed(whole):
        return Part(here, shape, 0)
    rows, first = shape[0] if shape else 1, 0
    cut = [(place, dimension) for dimension, place in enumerate(whole.placements) if not place.is_replicate()]
    if cut:
        place, dimension = cut[0]
        each = -(-rows // whole.device_mesh.size(dimension))
        first = min(whole.device_mesh.get_local_rank(dimension) * each, rows)
        if len(cut) > 1 or not place.is_shard(0) or here.shape[0] != min(each, rows - first):
            raise errors.UsageError(
                "only tensors that are cut along their rows over one dimension of a mesh can be merged", tensor=name,
                got=str(whole.placements),
            )  # fmt: skip
    return Part(here, shape, first * math.prod(shape[1:]))


def _is_distributed(tensor: Any) -> bool:
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def copied(weights: Mapping[str, Tensor], into: Mapping[str, Tensor] | None = None) -> Weights:
    """On the CPU, in memory of its own: that of ``into`` where it fits. Names of one tensor stay names of one."""
    into, same = into or {}, aliases(weights)
    found: Weights = {}
    for name, tensor in weights.items():
        if name in same:
            found[name] = found[same[name]]
            continue
        room = into.get(name)
        if room is None or room.dtype != tensor.dtype or room.shape != tensor.shape:
            room = torch.empty(tensor.shape, dtype=tensor.dtype)
        found[name] = room.copy_(tensor)
    return found


def put_back(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copy weights into the module's own tensors, in place: optimizers and graphs keep theirs."""
    own = trained(model)
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are."""
    if tensor.device.type == "cpu" and str(tensor.dtype).removeprefix("torch.") in DTYPES:
        return first_nonfinite(Row.of(tensor)) < 0
    return bool(torch.isfinite(tensor).all())


def aliases(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Further names of a tensor -> its first."""
    first: dict[tuple[object, ...], str] = {}
    found = {name: first.setdefault(_place(own) if own.numel() else (name,), name) for name, own in weights.items()}
    return {name: kept for name, kept in found.items() if name != kept}


def on_cpu(state: Any) -> Any:
    """A state dict of any depth with its tensors copied to the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: on_cpu(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(on_cpu(value) for value in state)
    return state


def local(tensor: Any) -> Tensor:
    """Of a tensor over several processes, the part that lies here."""
    here: Tensor = tensor
    if _is_distributed(tensor):
        here = tensor.to_local()
    return here


def _place(tensor: Tensor) -> tuple[object, ...]:
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), str(tensor.device))
