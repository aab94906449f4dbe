"""A module's weights as maps of tensors: what training changes, copied out and copied back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

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
            found[name] = _local(tensor.detach())
    return found


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


def _local(tensor: Tensor) -> Tensor:
    """Of a tensor over several processes, the part that lies here."""
    if type(tensor) is Tensor:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _place(tensor: Tensor) -> tuple[object, ...]:
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), str(tensor.device))
