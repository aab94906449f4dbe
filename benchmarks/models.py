"""Synthetic checkpoints for the benchmarks, written piece by piece.

A base is normal noise; a fine-tune is the base plus a part that all fine-tunes share
plus a part of its own, both of the same size, so that the cosine between two task
vectors is about one half. One-dimensional tensors are no exception (a norm scale
near 1 would lose most of such a change to bfloat16). A piece depends on the tensor's
name and its place in it alone, so the files are the same whatever the threads.

The writer needs torch and runs as a process of its own (see `measure.Measurement`
for why): ``python -m benchmarks.models NAME --data DIR --scale 1.0``.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measure import remove
from benchmarks.shapes import BYTES_PER_ELEMENT, ENTRIES, Entry, names

FORMAT = 1
PIECE_ELEMENTS = 2**20
BASE_DEVIATION = 0.02
PART_DEVIATION = 0.001
SAFETENSORS_DTYPE = {"bfloat16": "BF16", "float32": "F32"}
STAMP = "stamp.json"


@dataclass(frozen=True)
class Place:
    """Where one tensor's bytes lie in every model: the shard and the offset in it."""

    name: str
    shard: int
    offset: int
    elements: int


@dataclass(frozen=True)
class Shard:
    """One file of a model: its name, its header and its size."""

    file: str
    header: bytes
    size: int


def key(name: str, scale: float, fine_tunes: int) -> str:
    """The folder of an entry's models at a scale."""
    return name + ("" if scale == 1.0 else f"-x{scale:.3g}") + ("" if fine_tunes == 3 else f"-n{fine_tunes}")


def weight_files(model: Path) -> list[Path]:
    """The safetensors files of a model folder, in order."""
    return sorted(path for path in model.glob("*.safetensors") if not path.name.startswith("stockpot_"))


def tensor_bytes(out: Path) -> int:
    """The tensor bytes of a checkpoint, file or folder, by its headers."""
    total = 0
    for path in [out] if out.is_file() else weight_files(out):
        with path.open("rb") as file:
            total += path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    return total


def layout(entry: Entry, scale: float) -> tuple[list[Shard], list[Place]]:
    """Spread the tensors over the shards in order, by bytes; names sorted in each."""
    total = entry.model_bytes(scale)
    width = BYTES_PER_ELEMENT[entry.dtype]
    contents: list[dict[str, tuple[int, ...]]] = [{} for _ in range(entry.shards)]
    done = 0
    for name, shape in entry.tensors(scale):
        contents[done * entry.shards // total][name] = shape
        done += math.prod(shape) * width
    shards, places = [], []
    for number, content in enumerate(contents):
        table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in sorted(content):
            elements = math.prod(content[name])
            places.append(Place(name, number, end, elements))
            table[name] = {
                "dtype": SAFETENSORS_DTYPE[entry.dtype],
                "shape": content[name],
                "data_offsets": [end, end := end + elements * width],
            }
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        file = "model.safetensors"
        if entry.shards > 1:
            file = f"model-{number + 1:05}-of-{entry.shards:05}.safetensors"
        shards.append(Shard(file, header, len(header) + end))
    return shards, places


def write_side_files(folder: Path, entry: Entry, scale: float, shards: list[Shard], places: list[Place]) -> None:
    """Write ``config.json`` and, for several shards, the index."""
    config = entry.config(scale) | {"dtype": entry.dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": entry.model_bytes(scale)},
            "weight_map": {p.name: shards[p.shard].file for p in places},
        }
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_weights(folders: list[Path], dtype_name: str, shards: list[Shard], places: list[Place]) -> None:
    """Fill the weight files of the base (first folder) and of all fine-tunes."""
    import torch

    dtype = getattr(torch, dtype_name)
    width = BYTES_PER_ELEMENT[dtype_name]

    def pieces() -> Iterator[tuple[Place, int]]:
        for place in places:
            for start in range(0, place.elements, PIECE_ELEMENTS):
                yield place, start

    def write_piece(piece: tuple[Place, int]) -> None:
        place, start = piece
        count = min(PIECE_ELEMENTS, place.elements - start)
        digest = hashlib.blake2b(f"{place.name}:{start}".encode(), digest_size=7)
        generator = torch.Generator().manual_seed(int.from_bytes(digest.digest(), "big"))
        offset = len(shards[place.shard].header) + place.offset + start * width

        def noise(deviation: float) -> torch.Tensor:
            return torch.empty(count).normal_(0, deviation, generator=generator)

        base = noise(BASE_DEVIATION).to(dtype)
        centre = noise(PART_DEVIATION).add_(base)
        for number, files in enumerate(descriptors):
            value = centre + noise(PART_DEVIATION) if number else base
            data = value.to(dtype).view(torch.uint8).numpy().data
            while data:
                written = os.pwrite(files[place.shard], data, offset)
                data, offset = data[written:], offset + written
            offset -= count * width

    with ExitStack() as stack:
        descriptors: list[list[int]] = []
        for folder in folders:
            files = []
            for shard in shards:
                file = stack.enter_context((folder / shard.file).open("wb"))
                file.write(shard.header)
                file.flush()
                files.append(file.fileno())
            descriptors.append(files)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(write_piece, pieces()):
                pass


def settings(name: str, scale: float, fine_tunes: int) -> dict[str, Any]:
    """What decides the bytes of an entry: the stamp of a finished build."""
    shards, places = layout(ENTRIES[name], scale)
    headers = hashlib.sha256(b"".join(shard.header for shard in shards))
    return {
        "format": FORMAT,
        "name": name,
        "scale": scale,
        "models": list(names(fine_tunes)),
        "tensors": len(places),
        "headers_sha256": headers.hexdigest(),
        "deviations": [BASE_DEVIATION, PART_DEVIATION],
        "torch": version("torch"),
    }


def build(name: str, data: Path, scale: float, fine_tunes: int) -> None:
    """Write all models of an entry; the stamp comes last."""
    entry, root = ENTRIES[name], data / key(name, scale, fine_tunes)
    remove(root)
    folders = [root / model for model in names(fine_tunes)]
    shards, places = layout(entry, scale)
    for folder in folders:
        folder.mkdir(parents=True)
        write_side_files(folder, entry, scale, shards, places)
    needed = sum(shard.size for shard in shards) * (len(folders) + 1)
    free = shutil.disk_usage(root).free
    if needed > free:
        remove(root)
        sys.exit(f"benchmarks: {name} needs {needed} bytes on disk, {free} are free")
    write_weights(folders, entry.dtype, shards, places)
    os.sync()
    (root / STAMP).write_text(json.dumps(settings(name, scale, fine_tunes), indent=2) + "\n")


def finished(name: str, data: Path, scale: float, fine_tunes: int) -> bool:
    """Whether the entry is there, by its stamp and by the sizes of its files."""
    entry, root = ENTRIES[name], data / key(name, scale, fine_tunes)
    stamp = root / STAMP
    if not stamp.is_file() or json.loads(stamp.read_text()) != settings(name, scale, fine_tunes):
        return False
    expected = entry.model_bytes(scale)
    return all(tensor_bytes(root / model) == expected for model in names(fine_tunes))


def ensure(name: str, data: Path, scale: float, fine_tunes: int) -> list[Path]:
    """Build the entry unless it is there; return its model folders, base first."""
    if not finished(name, data, scale, fine_tunes):
        command = [sys.executable, "-m", "benchmarks.models", name]
        command += ["--data", str(data.resolve()), "--scale", repr(scale), "--fine-tunes", str(fine_tunes)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    return [data / key(name, scale, fine_tunes) / model for model in names(fine_tunes)]


def main() -> None:
    """Build one entry from the command line."""
    parser = argparse.ArgumentParser(description="Write one entry's models.")
    parser.add_argument("name", choices=list(ENTRIES))
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--fine-tunes", type=int, default=3)
    given = parser.parse_args()
    build(given.name, given.data, given.scale, given.fine_tunes)


if __name__ == "__main__":
    main()
