"""Modules of plain torch: made from a seed, fine-tuned by real steps, compared, kept in the forms that are one file.

No other library is imported here: a process that must not see transformers uses it too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch

M = TypeVar("M", bound=torch.nn.Module)
STEPS = 3


def seeded(make: Callable[[], M], seed: int) -> M:
    """A freshly initialised module; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def tuned(module: M, loss: Callable[[M, torch.Generator], torch.Tensor], seed: int) -> M:
    """A copy of the module after a few real optimisation steps on data of that seed."""
    after = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout
        after.train()
        optimizer = torch.optim.AdamW(after.parameters(), lr=2e-3)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss(after, generator).backward()
            optimizer.step()
    return after.eval()


def shared(state: Mapping[str, torch.Tensor]) -> set[frozenset[str]]:
    """Names that are one tensor: the ties."""
    places: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in state.items():
        if tensor.numel():
            places.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), []).append(name)
    return {frozenset(names) for names in places.values() if len(names) > 1}


def same_tensors(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Names, dtypes, shapes and bytes."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        same_bytes(name, found[name], tensor)


def same_bytes(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Dtype, shape and bytes of one tensor."""
    assert found.dtype == expected.dtype, f"{name}: {found.dtype}, expected {expected.dtype}"
    assert found.shape == expected.shape, f"{name}: {found.shape}, expected {expected.shape}"
    left, right = (one.detach().contiguous().reshape(-1).view(torch.uint8) for one in (found, expected))
    assert torch.equal(left, right), f"{name}: other bytes"


def state_dict(module: torch.nn.Module, file: Path) -> None:
    """A state dict and nothing else."""
    torch.save(module.state_dict(), file)


def compiled(module: torch.nn.Module, file: Path) -> None:
    """The state dict of a compiled module: its names begin with ``_orig_mod.``."""
    torch.save(torch.compile(module, backend="eager").state_dict(), file)  # not called: nothing is compiled


def training_state(module: torch.nn.Module, file: Path) -> None:
    """What Lightning saves of a module that holds the model as ``model``."""
    whole = torch.nn.Module()
    whole.model = copy.deepcopy(module)
    optimizer = torch.optim.AdamW(whole.parameters())
    for parameter in whole.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    content: dict[str, Any] = {
        "epoch": 1,
        "global_step": STEPS,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"model.{name}": tensor for name, tensor in module.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "last": "x.ckpt"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [schedule.state_dict()],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 2e-3, "betas": (0.9, 0.999)},
    }
    torch.save(content, file)


def with_aliases(module: torch.nn.Module, file: Path) -> None:
    """safetensors' own way with ties: one tensor is kept, the other names stand in the header."""
    safetensors.torch.save_model(module, str(file))


LONE_FORMS: dict[str, tuple[Callable[[torch.nn.Module, Path], None], str, str]] = {
    "state-dict": (state_dict, ".pt", ".pt"),
    "compiled": (compiled, ".pth", ".safetensors"),
    "training-state": (training_state, ".ckpt", ".safetensors"),
    "aliases": (with_aliases, ".safetensors", ".safetensors"),
}
"""Writer, suffix of the inputs, suffix of the output."""


def loaded(fresh: M, out: Path, form: str) -> tuple[M, dict[str, torch.Tensor]]:
    """A merged file of that form in a module like those that it was made of, strictly; and the file's tensors."""
    whole: torch.nn.Module = fresh
    if form == "training-state":
        whole = torch.nn.Module()
        whole.model = fresh
    if out.suffix == ".pt":
        found = torch.load(out, weights_only=True)
        assert not any(whole.load_state_dict(found))
    else:
        found = safetensors.torch.load_file(out)
        assert safetensors.torch.load_model(whole, out) == (set(), [])
    if form == "training-state":
        found = {name.removeprefix("model."): tensor for name, tensor in found.items()}
    return fresh.eval(), found
