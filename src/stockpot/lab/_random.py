"""Random numbers by name, so that no part of the demo shifts the randomness of another."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A generator of its own for each (seed, names): equal keys give equal numbers, whatever else was drawn."""
    key = "/".join(str(part) for part in (seed, *names))
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Float32 numbers, uniform between ``low`` and ``high``."""
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float32)
