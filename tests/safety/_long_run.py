"""A process that merges again and again, in every way, and says after each round what it holds."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tests.engine._checkpoints import folder
from tests.safety._outputs import adapter

import stockpot
from stockpot import errors, soups

SHAPES = {"layers.0.weight": (512, 512), "layers.1.weight": (512, 512), "layers.1.bias": (512,), "norm.weight": (256,)}


def weights(number: int) -> dict[str, torch.Tensor]:
    """Two megabytes."""
    draw = torch.Generator().manual_seed(number)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


class Ways:
    """Each method is one merge, or something as large; ``out`` is free before and after."""

    def __init__(self, root: Path) -> None:
        self.out = root / "out"
        self.base, self.one, self.two = (folder(root / name, weights(n)) for n, name in enumerate("abc"))
        self.broken = folder(root / "nan", weights(1) | {"norm.weight": torch.full((256,), torch.nan)})
        self.other = folder(root / "other", {"else.weight": torch.ones(4)})
        self.adapters = [adapter(root / f"adapter{number}", number) for number in (1, 2)]
        self.states = [weights(number) for number in range(3)]

    def stock(self, out: Path | None = None, **options: object) -> None:
        self.merge("model_stock", out or self.out, base=self.base, models=[self.one, self.two], **options)

    def merge(self, method: str, out: Path, **options: object) -> None:
        stockpot.merge(method, out=out, **options)  # type: ignore[arg-type]

    def linear(self) -> None:
        self.merge("linear", self.out, models=[self.one, self.two], dtype="bfloat16")

    def rows(self) -> None:
        self.stock(granularity="row", workers=2)

    def shards(self) -> None:
        self.stock(shard_size="1MB")

    def pickled(self) -> None:
        self.stock(self.out.with_suffix(".pt"))

    def one_file(self) -> None:
        self.stock(self.out.with_suffix(".safetensors"))

    def slerp(self) -> None:
        self.merge("slerp", self.out, base=self.one, models=[self.two], parameters={"t": 0.3})

    def of_adapters(self) -> None:
        self.merge("linear", self.out, models=self.adapters)

    def verified(self) -> None:
        self.stock()
        assert not stockpot.verify(self.out, recompute=1.0).problems

    def measured(self) -> None:
        self.stock()
        stockpot.geometry(base=self.base, models=[self.one, self.two], stored=self.out)
        stockpot.geometry(base=self.base, models=[self.one, self.two], granularity="row")

    def in_memory(self) -> None:
        stockpot.merge_state_dicts("model_stock", base=self.states[0], models=self.states[1:])

    def souped(self) -> None:
        soups.greedy([self.one, self.two], lambda found: float(found["norm.weight"][0]), out=self.out)

    def refused(self) -> None:
        for models, kind in (
            ([self.one, self.other], errors.AlignmentError),
            ([self.one, self.broken], errors.InputError),
        ):
            with contextlib.suppress(kind):
                self.merge("linear", self.out, models=models)
                raise AssertionError("it was not refused")

    def damaged(self) -> None:
        self.stock()
        file = self.out / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        assert stockpot.verify(self.out).problems

    def interrupted(self) -> None:
        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            self.stock(progress=stop)
            raise AssertionError("it was not interrupted")
        self.stock()


def entries(folder: str) -> int:
    """How many there are."""
    return len(list(Path(folder).iterdir()))


class _MallocInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


def malloc_bytes() -> int:
    """What is allocated and not freed, by the C library's own count; 0 where it has none."""
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        return 0
    function.restype = _MallocInfo
    found = function()
    return int(found.uordblks + found.hblkhd)


def held() -> dict[str, int]:
    """Memory, files, threads, mappings and temporary files of this process."""
    gc.collect()
    deadline = time.monotonic() + 5.0
    while entries("/proc/self/task") > threading.active_count() and time.monotonic() < deadline:
        time.sleep(0.001)  # a thread that was joined may still be on its way out of the system
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "rss_bytes": int(status["VmRSS"].split()[0]) * 1024,
        "malloc_bytes": malloc_bytes(),
        "python_blocks": sys.getallocatedblocks(),
        "files": entries("/proc/self/fd"),
        "threads": entries("/proc/self/task"),
        "mappings": Path("/proc/self/maps").read_text().count("\n"),
        "temporary_files": entries(tempfile.gettempdir()),
    }


def ways(found: Ways) -> list[Callable[[], None]]:
    """All of them, in order."""
    return [
        found.stock, found.linear, found.rows, found.shards, found.pickled, found.one_file, found.slerp,
        found.of_adapters, found.verified, found.measured, found.in_memory, found.souped, found.refused,
        found.damaged, found.interrupted,
    ]  # fmt: skip


def main(root: Path, rounds: int) -> None:
    """Print what is held after each round."""
    found = Ways(root)
    before = {*root.iterdir()}
    for _ in range(rounds):
        for way in ways(found):
            way()
            for left in {*root.iterdir()} - before:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
                if left.stem != "out" or "partial" in left.name or "old" in left.name:
                    raise AssertionError(f"{left.name} was left")
        print(json.dumps(held()), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
