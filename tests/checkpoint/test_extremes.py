"""What real disks and real checkpoints hold: thousands of shards, any names, huge and empty tensors, links, rights."""

from __future__ import annotations

import json
import os
import resource
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

import stockpot
from stockpot.checkpoint import open_checkpoint

NAMES = [
    "plain",
    "couche.été.poids",
    "层.0.权重",
    "слой.1.вес",
    "🔥.weight",
    "with space.and\ttab",
    'quotes".and\\backslash',
    "..double..dots..",
    ".leading",
    "trailing.",
    "a/slash",
    "x" * 300,
    "é" * 150 + ".w",
    "new\nline",
    "__metadata",
    "0",
    "\u202eright-to-left",
]


def sharded(folder: Path, count: int, value: float) -> Path:
    """A checkpoint of that many shards with two small tensors each."""
    folder.mkdir()
    weight_map = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        header = {
            f"layers.{number}.w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
            f"layers.{number}.b": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]},
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        data = np.full(6, value + number, np.float32).tobytes()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + data)
        weight_map |= dict.fromkeys(header, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """As few as a careful system allows."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.slow
def test_ten_thousand_shards(few_descriptors: None, tmp_path: Path) -> None:
    """10,000 shards: through a merge with 256 descriptors, into as many shards, every tensor right."""
    model = sharded(tmp_path / "in", 10_000, 2.0)
    stockpot.merge("linear", models=[model], out=tmp_path / "out", dtype="float64")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(index["weight_map"]) == 20_000
    assert len(set(index["weight_map"].values())) == 10_000
    for number in (0, 1, 4_999, 9_999):
        found = load_file(tmp_path / "out" / index["weight_map"][f"layers.{number}.w"])
        assert np.array_equal(found[f"layers.{number}.w"], np.full((2, 2), 2.0 + number, np.float32))


def test_nine_models_of_many_shards(few_descriptors: None, tmp_path: Path) -> None:
    """More files than descriptors, in inputs that all want theirs open: fewer are kept, nothing fails."""
    models = [sharded(tmp_path / f"m{number}", 60, float(number)) for number in range(9)]
    stockpot.merge("model_stock", base=models[0], models=models[1:], out=tmp_path / "out")
    stockpot.merge("linear", models=models, out=tmp_path / "mean")
    found = load_file(tmp_path / "mean" / "model-00060-of-00060.safetensors")
    assert np.array_equal(found["layers.59.b"], np.full(2, 63.0, np.float32))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_names_of_every_kind(suffix: str, tmp_path: Path) -> None:
    """Unicode, dots, 300 characters, quotes: names come out as they went in, from both formats into both."""
    for number in range(3):
        state = {name: torch.full((3,), float(number + place)) for place, name in enumerate(NAMES)}
        file = tmp_path / f"m{number}{suffix}"
        save_torch(state, file) if suffix == ".safetensors" else torch.save(state, file)
    files = [tmp_path / f"m{number}{suffix}" for number in range(3)]
    for out in ("folder", "one.safetensors", "one.pt"):
        stockpot.merge("model_stock", base=files[0], models=files[1:], out=tmp_path / out)
        source = open_checkpoint(tmp_path / out)
        assert set(source.tensors) == set(NAMES)
        source.close()
        assert stockpot.verify(tmp_path / out, recompute=1.0).problems == ()
    found = torch.load(tmp_path / "one.pt", weights_only=True)
    plain = load_file(tmp_path / "folder" / "model.safetensors")
    assert all(np.array_equal(found[name].numpy(), plain[name]) for name in NAMES)


def test_numbers_and_nothing(tmp_path: Path) -> None:
    """0-d tensors are merged, tensors without elements are kept in their shapes, in every dtype of floats."""
    for number in range(3):
        state = {}
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            state[f"{dtype}.number"] = torch.tensor(float(number), dtype=dtype)
            state[f"{dtype}.none"] = torch.empty(0, dtype=dtype)
            state[f"{dtype}.no_rows"] = torch.empty(0, 5, dtype=dtype)
            state[f"{dtype}.no_columns"] = torch.empty(5, 0, 2, dtype=dtype)
        save_torch(state, tmp_path / f"m{number}.safetensors")
    files = [tmp_path / f"m{number}.safetensors" for number in range(3)]
    stockpot.merge("model_stock", base=files[0], models=files[1:], out=tmp_path / "out")
    source = open_checkpoint(tmp_path / "out")
    assert {name: info.shape for name, info in source.tensors.items()} == {n: tuple(t.shape) for n, t in state.items()}
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            # Steps of 1 and 2 point the same way: t is 1, the plain mean.
            assert torch.equal(file.get_tensor(f"{dtype}.number"), torch.tensor(1.5, dtype=dtype))
            assert file.get_tensor(f"{dtype}.no_columns").shape == (5, 0, 2)


def huge(path: Path, value: int) -> Path:
    """A file of one bf16 tensor of 2^31 + 64 elements, all holes but for its last bytes."""
    elements = (1 << 31) + 64
    entry = {"dtype": "BF16", "shape": [elements // 64, 64], "data_offsets": [0, 2 * elements]}
    text = json.dumps({"w": entry}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 2 * elements)
        file.seek(-4, os.SEEK_END)
        file.write(struct.pack("<HH", value, value))
    return path


@pytest.mark.slow
def test_more_than_two_to_the_31_elements(tmp_path: Path) -> None:
    """A sparse file whose one tensor has more than 2^31 elements: its last element is the mean, within the budget."""
    one, two = huge(tmp_path / "a.safetensors", 0x3F80), huge(tmp_path / "b.safetensors", 0x4040)  # 1 and 3
    result = stockpot.merge("linear", models=[one, two], out=tmp_path / "out.safetensors")
    with (tmp_path / "out.safetensors").open("rb") as file:
        file.seek(-4, os.SEEK_END)
        assert struct.unpack("<HH", file.read()) == (0x4000, 0x4000)
    assert result.tensors == 1
    info = open_checkpoint(tmp_path / "out.safetensors").tensors["w"]
    assert info.shape == (((1 << 31) + 64) // 64, 64)


def model(folder: Path, value: float) -> Path:
    """A small folder."""
    folder.mkdir(parents=True)
    save_file({"w": np.full((4, 4), value, np.float32)}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


def mean_of_one_and_three(out: Path) -> None:
    assert np.array_equal(load_file(out / "model.safetensors")["w"], np.full((4, 4), 2.0, np.float32))


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system to write to")
def test_inputs_and_output_on_other_disks(tmp_path: Path) -> None:
    """Inputs on two file systems, the output on one or the other."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as shared:
        other = Path(shared)
        assert other.stat().st_dev != tmp_path.stat().st_dev
        models = [model(tmp_path / "a", 1.0), model(other / "b", 3.0)]
        for out in (tmp_path / "out", other / "out"):
            stockpot.merge("linear", models=models, out=out)
            mean_of_one_and_three(out)


def test_read_only_inputs(tmp_path: Path) -> None:
    """Nothing is written beside inputs: read-only files in read-only folders will do."""
    models = [model(tmp_path / name, value) for name, value in (("a", 1.0), ("b", 3.0))]
    for folder in models:
        for file in folder.iterdir():
            file.chmod(0o444)
        folder.chmod(0o555)
    stockpot.merge("linear", models=models, out=tmp_path / "out")
    mean_of_one_and_three(tmp_path / "out")
    assert stockpot.verify(tmp_path / "out", recompute=1.0).problems == ()
    assert all(os.access(file, os.W_OK) for file in (tmp_path / "out").iterdir())
    for folder in models:
        folder.chmod(0o755)


def test_relative_and_linked_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths, ``~``, a linked folder, linked files: all lead to the same bytes; none comes out as a link."""
    (tmp_path / "work").mkdir()
    real = model(tmp_path / "real" / "a", 1.0)
    model(tmp_path / "work" / "b", 3.0)
    (tmp_path / "work" / "linked").symlink_to(real)
    (tmp_path / "files").mkdir()
    for file in real.iterdir():
        (tmp_path / "files" / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    for number, first in enumerate(("../real/a", "linked", "../files", "~/real/a", "./linked/model.safetensors")):
        stockpot.merge("linear", models=[first, "b"], out=f"out{number}")
        mean_of_one_and_three(tmp_path / "work" / f"out{number}")
        assert not any(path.is_symlink() for path in (tmp_path / "work" / f"out{number}").iterdir())


def test_the_layout_of_the_hub_cache(tmp_path: Path) -> None:
    """``snapshots/COMMIT/NAME`` linked to ``blobs/DIGEST`` relatively, shards and index too."""
    roots = []
    for name, value in (("a", 1.0), ("b", 3.0)):
        made = sharded(tmp_path / f"made-{name}", 3, value)
        root = tmp_path / f"models--org--{name}"
        snapshot = root / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (root / "blobs").mkdir()
        for number, file in enumerate(sorted(made.iterdir())):
            file.rename(root / "blobs" / f"{number:064x}")
            (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{number:064x}"))
        roots.append(snapshot)
    stockpot.merge("linear", models=roots, out=tmp_path / "out")
    found = load_file(tmp_path / "out" / "model-00002-of-00003.safetensors")
    assert np.array_equal(found["layers.1.w"], np.full((2, 2), 3.0, np.float32))
    assert stockpot.verify(tmp_path / "out", recompute=1.0).problems == ()
