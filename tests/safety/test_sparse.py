"""A merge far larger than memory, of sparse files: it stays inside its plan, and what was written in them comes out."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.engine._processes import command
from tests.oracles import model_stock

from stockpot.checkpoint import header_of

from .conftest import Campaign

COLUMNS = 32_768
WRITTEN = 4_096
"""Elements of each block that is written; all between is a hole."""
RATIO = 1.05
"""Measured peak of the process over the planned one, at most."""


@dataclass(frozen=True)
class Size:
    """Rows of a large tensor and of the others, how many others, how many fine-tunes."""

    large: int
    other: int
    others: int
    models: int

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """All tensors, in the order of the file."""
        others = {f"layers.{number}.weight": (self.other, COLUMNS) for number in range(self.others)}
        return {"embed.weight": (self.large, COLUMNS), **others}


SHORT, SOAK = Size(1_025, 512, 4, 4), Size(65_537, 8_191, 11, 9)
"""1 GB, and 100 GB with a tensor of more than 2^31 elements."""


def places(elements: int) -> list[int]:
    """First elements of the written blocks: both ends, the middle, across 2^16, and across 2^31 where it is inside."""
    found = [0, (1 << 16) - 7, elements // 2, (1 << 31) - 100, elements - WRITTEN]
    return sorted(at for at in found if at + WRITTEN <= elements)


def as_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of float32 numbers, rounded to nearest even."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def as_float(bits: np.ndarray) -> np.ndarray:
    """Numbers of their bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def block(name: str, at: int, model: int) -> np.ndarray:
    """Bits of a written block: the base (0), or a fine-tune of it."""
    key = [len(name), name.encode()[-8], at % 2**32, at >> 32]
    base = np.random.default_rng(key).standard_normal(WRITTEN)
    shared = np.random.default_rng([*key, 1]).standard_normal(WRITTEN)
    own = np.random.default_rng([*key, 2, model]).standard_normal(WRITTEN)
    return as_bfloat16(base + (0.1 * shared + 0.05 * own if model else 0.0))


def sparse(file: Path, size: Size, model: int) -> Path:
    """A file with holes: header, written blocks."""
    header, begin = {}, 0
    for name, (rows, columns) in size.shapes.items():
        header[name] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [begin, begin + 2 * rows * columns]}
        begin += 2 * rows * columns
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as handle:
        handle.truncate(8 + len(text) + begin)
        handle.write(struct.pack("<Q", len(text)) + text)
        for name, (rows, columns) in size.shapes.items():
            for at in places(rows * columns):
                handle.seek(8 + len(text) + header[name]["data_offsets"][0] + 2 * at)
                handle.write(block(name, at, model).tobytes())
    return file


def check(out: Path, size: Size, groups: dict[str, dict[str, float]]) -> int:
    """Ratios, and every written block, against the oracle; a sample of the holes is zero. Returns elements checked."""
    checked = wrong = 0
    with out.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(length))
        for name, (rows, columns) in size.shapes.items():
            inputs = [
                np.concatenate([as_float(block(name, at, model)) for at in places(rows * columns)])
                for model in range(size.models + 1)
            ]
            tasks = [one - inputs[0] for one in inputs[1:]]
            ratio = model_stock.ratio(np.array([[a @ b for b in tasks] for a in tasks]))
            assert groups[name]["ratio"] == pytest.approx(ratio, abs=1e-6)
            expected = as_bfloat16(inputs[0] + groups[name]["ratio"] * (sum(tasks) / size.models))
            begin = 8 + length + header[name]["data_offsets"][0]
            for number, at in enumerate(places(rows * columns)):
                handle.seek(begin + 2 * at)
                found = np.frombuffer(handle.read(2 * WRITTEN), np.uint16)
                want = expected[number * WRITTEN : (number + 1) * WRITTEN]
                wrong += int((found != want).sum())
                assert np.abs(found.astype(int) - want.astype(int)).max() <= 1, (name, at)
                checked += WRITTEN
                handle.seek(begin + 2 * (at + WRITTEN))
                hole = handle.read(2 * WRITTEN) if at + 2 * WRITTEN <= rows * columns else b""
                assert not any(hole), (name, at)
    assert wrong <= max(2, checked // 5_000), (wrong, checked)  # float64 here rounds twice, by way of float32
    return checked


def run(arguments: list[str]) -> dict[str, object]:
    """A process of its own, so that its peak is the merge's; the object that it prints."""
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(3600)
def test_sparse_inputs(tmp_path: Path, campaign: Campaign) -> None:
    """Model Stock of sparse inputs: its peak memory is the planned one at most, its numbers are those of the oracle."""
    size = SOAK if campaign.is_soak else SHORT
    total = sum(2 * rows * columns for rows, columns in size.shapes.values())
    if shutil.disk_usage(tmp_path).free < total + (4 << 30):
        pytest.skip(f"{total + (4 << 30)} bytes must be free")
    try:
        files = [sparse(tmp_path / f"{model}.safetensors", size, model) for model in range(size.models + 1)]
        on_disk = sum(file.stat().st_blocks * 512 for file in files)
        out = tmp_path / "out.safetensors"
        line = command("merge", "--method", "model_stock", "--base", *files, "--out", out, "--json", "--quiet")
        plan = run([*line, "--dry-run"])
        began = time.monotonic()
        merged = run(line)
        seconds = time.monotonic() - began
        stated = json.loads(json.loads(header_of(out)[8:])["__metadata__"]["stockpot"])
        checked = check(out, size, stated["groups"])
        planned, measured = int(str(plan["peak_memory_bytes"])), int(str(merged["peak_memory_bytes"]))
        campaign.record(
            "sparse",
            inputs=size.models + 1,
            input_bytes=total * (size.models + 1),
            input_bytes_on_disk=on_disk,
            largest_tensor_elements=size.large * COLUMNS,
            bytes_read=merged["bytes_read"],
            bytes_written=merged["bytes_written"],
            merge_seconds=round(seconds, 1),
            planned_peak_bytes=planned,
            measured_peak_bytes=measured,
            elements_checked=checked,
        )
        assert merged["bytes_read"] == plan["bytes_read"]
        assert measured <= RATIO * planned
    finally:
        for file in tmp_path.iterdir():
            file.unlink()
