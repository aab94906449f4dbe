"""Where a worker computes: in memory, or on a GPU that it reaches through pinned memory and a stream of its own.

Reading, transfer and arithmetic overlap because workers do: while one waits for its stream, another reads. Under
``cuda`` the workers are dealt out over all GPUs, under ``cuda:N`` they share one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stockpot import errors
from stockpot.kernels import Row


class Device(Protocol):
    """A worker's own."""

    def allocate(self, size: int) -> NDArray[np.uint8]:
        """Bytes in memory, to read into and to write from."""

    @contextmanager
    def computing(self) -> Iterator[None]:
        """What is computed meanwhile is computed there."""

    def placed(self, row: Row) -> Row:
        """The row's elements on the device."""

    def room(self, row: Row) -> Row:
        """Room on the device for as many elements."""

    def fetch(self, there: Row, here: Row) -> None:
        """The elements of a row of the device, into memory; waits for them."""


class Host:
    """Memory itself: nothing is moved, and torch is not needed."""

    def allocate(self, size: int) -> NDArray[np.uint8]:
        return np.empty(size, dtype=np.uint8)

    @contextmanager
    def computing(self) -> Iterator[None]:
        yield

    def placed(self, row: Row) -> Row:
        return row

    def room(self, row: Row) -> Row:
        return row

    def fetch(self, there: Row, here: Row) -> None:
        assert there is here


class Gpu:
    """One GPU, one stream. What is read from the stream is waited for, so that buffers are free after each task."""

    def __init__(self, device: str, worker: int) -> None:
        import torch

        number = int(device[5:]) if ":" in device else worker % torch.cuda.device_count()
        self._device = torch.device("cuda", number)
        self._stream = torch.cuda.Stream(self._device)

    def allocate(self, size: int) -> NDArray[np.uint8]:
        import torch

        return np.asarray(torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy())

    @contextmanager
    def computing(self) -> Iterator[None]:
        import torch

        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def placed(self, row: Row) -> Row:
        return Row(row.dtype, row.tensor().to(self._device, non_blocking=True))

    def room(self, row: Row) -> Row:
        import torch

        return Row(row.dtype, torch.empty(len(row), dtype=getattr(torch, row.dtype), device=self._device))

    def fetch(self, there: Row, here: Row) -> None:
        here.tensor().copy_(there.tensor(), non_blocking=True)
        self._stream.synchronize()


def device_of(device: str, worker: int) -> Device:
    """The device of the worker of that number."""
    return Host() if device == "cpu" else Gpu(device, worker)


def choose_device(device: str) -> str:
    """``cpu``, ``cuda``, ``cuda:N``; ``auto`` takes a GPU where there is one."""
    if device == "cpu":
        return device
    if device != "auto" and device != "cuda" and not re.fullmatch(r"cuda:[0-9]{1,3}", device):
        raise errors.unknown_name("device", device, ("cpu", "cuda", "cuda:0", "auto"))
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    number = int(device[5:]) if ":" in device else 0
    if number >= torch.cuda.device_count():
        raise errors.UsageError(
            "there is no such GPU",
            expected=f"one of the {torch.cuda.device_count()} there are",
            got=device,
            remedy="--device cpu",
        )
    return device
