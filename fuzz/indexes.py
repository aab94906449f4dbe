"""Shard indexes, and whatever else a folder may hold: manifests, configurations, files of any name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import atheris

from fuzz import _json, headers
from fuzz._guard import Finding
from fuzz._memory import MemoryPlace
from fuzz._target import Run, Target
from stockpot.checkpoint import _files, _folder, _header, _open

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def _file(names: str, metadata: Mapping[str, str]) -> bytes:
    return _header.build([(name, "F32", (2,)) for name in names], metadata) + bytes(8 * len(names))


FILES = {SHARDS[0]: _file("ab", {"format": "pt", "tied": "a"}), SHARDS[1]: _file("c", {}), "config.json": b"{}"}
MAP = {"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1], "tied": SHARDS[0]}
VALUES = (*_json.VALUES, *SHARDS, *MAP, "config.json", INDEX, "./" + SHARDS[0], "sub/" + SHARDS[0], "a\\b", "x" * 5000)
_HOSTILE = ("../x.safetensors", "/etc/passwd", "/dev/zero", ".", "", "sub", "pipe", "link", "\0", "\ud800", "C:\\x")


def _index(stated: object) -> bytes:
    return json.dumps({"metadata": {"total_size": 24}, "weight_map": stated}).encode()


def index_seeds() -> list[bytes]:
    """A right index, and one entry of it that leads elsewhere."""
    return [_index(MAP), *(_index({**MAP, "c": name}) for name in _HOSTILE), _index([]), b"[]", b"{}"]


def _check(contents: _folder.Contents, files: Mapping[str, bytes]) -> None:
    for info in contents.tensors.values():
        if info.offset + info.nbytes > len(files[contents.files[info.file].path]):
            raise Finding(f"accepted, but {info} lies outside its file")


def _prepare_index(folder: Path) -> Run:
    def run(data: bytes) -> None:
        files = {**FILES, INDEX: data}
        _check(_folder.read_folder(MemoryPlace(files)), files)

    return run


def _mutate_index(data: bytes, most: int, random: Random) -> bytes:
    changed = _json.mutate_json(data, random, VALUES) if random.random() < 0.7 else None
    return bytes(atheris.Mutate(data, most)) if changed is None else changed


INDEXES = Target(
    "index",
    _prepare_index,
    index_seeds,
    (*headers.WATCHED,),
    _mutate_index,
    (b'"weight_map"', *(n.encode() for n in SHARDS)),
)


def _prepare_disk(folder: Path) -> Run:
    """The same on files, with a pipe, a symlinked folder and a symlink out of the folder beside the shards."""
    place = folder / "model"
    (place / "sub").mkdir(parents=True)
    for name, content in FILES.items():
        (place / name).write_bytes(content)
    (place / "sub" / SHARDS[0]).write_bytes(FILES[SHARDS[0]])
    (place / "link").symlink_to(place / "sub")
    os.mkfifo(place / "pipe")
    index = os.open(place / INDEX, os.O_RDWR | os.O_CREAT, 0o600)

    def run(data: bytes) -> None:
        os.ftruncate(index, 0)
        os.pwrite(index, data, 0)
        checkpoint = _open.open_checkpoint(place)
        for info in checkpoint.tensors.values():
            checkpoint.read_into(info, 0, memoryview(bytearray(info.nbytes)))
        checkpoint.close()

    return run


SHARDED = Target("shards", _prepare_disk, index_seeds, (_open, _files, *headers.WATCHED), _mutate_index)


def _text(name: str, content: object) -> list[object]:
    return [name, content if isinstance(content, str) else json.dumps(content)]


def _prepare_folder(folder: Path) -> Run:
    def run(data: bytes) -> None:
        try:
            stated = _json.parse(data)
            files = {str(name): _content(value) for name, value in stated}
        except (ValueError, TypeError, RecursionError):
            return
        _check(_folder.read_folder(MemoryPlace(files)), files)

    return run


def _content(value: Any) -> bytes:
    """A number stands for a file of weights, text for itself, anything else for its JSON."""
    if isinstance(value, int):
        return FILES[SHARDS[value % 2]]
    return (value if isinstance(value, str) else _json.dump(value)).encode("utf-8", "surrogatepass")


def _folder_seeds() -> list[bytes]:
    part = {"unet/diffusion_pytorch_model.safetensors": 0, "vae/model.safetensors": 1}
    folders: list[dict[str, object]] = [
        {"model.safetensors": 0, "config.json": {"tie_word_embeddings": True, "text_config": {}}},
        {SHARDS[0]: 0, SHARDS[1]: 1, INDEX: {"weight_map": MAP}},
        {"model_index.json": {"_class_name": "P", "unet": ["diffusers", "U"], "vae": ["a", "b"]}, **part},
        {"modules.json": [{"path": ""}, {"path": "1_Dense"}], "model.safetensors": 0, "1_Dense/model.safetensors": 1},
        {"modules.json": [{"path": "../x"}, {"path": "/etc"}, {"path": "a/b"}], "a/b/model.safetensors": 0},
        {"adapter_config.json": {"peft_type": "LORA"}, "adapter_model.safetensors": 0},
        {"pytorch_model.bin": "x", "x.pt": 1, "checkpoint-1/model.safetensors": 0, ".hidden/model.safetensors": 1},
    ]
    return [json.dumps(files).encode() for files in folders]


_NAMES = (
    *("model.safetensors", "a/model.safetensors", "model_index.json", "modules.json", "config.json", INDEX, "x.bin"),
    *("a/b/c.safetensors", "a", "a/", "/a", "../a/model.safetensors", "adapter_model.safetensors", "path"),
)


def _mutate_folder(data: bytes, most: int, random: Random) -> bytes:
    changed = _json.mutate_json(data, random, (*VALUES, *_NAMES)) if random.random() < 0.9 else None
    return bytes(atheris.Mutate(data, most)) if changed is None else changed


FOLDER = Target("folder", _prepare_folder, _folder_seeds, headers.WATCHED, _mutate_folder)
