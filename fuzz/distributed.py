"""Folders of ``torch.distributed.checkpoint``: the metadata."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import atheris

from fuzz import _opcodes, pickles
from fuzz._target import Run, Target
from stockpot.checkpoint import _dcp, _dcp_metadata, _files, _open

_METADATA = "ctorch.distributed.checkpoint.metadata\n"
GLOBALS = (
    *(f"{_METADATA}{name}\n".encode() for name in ("Metadata", "ChunkStorageMetadata", "MetadataIndex")),
    *(
        f"{_METADATA}{name}\n".encode()
        for name in ("TensorStorageMetadata", "TensorProperties", "BytesStorageMetadata")
    ),
    b"ctorch.distributed.checkpoint.filesystem\n_StorageInfo\n",
    *(b"S'" + key + b"'\n" for key in (b"offsets", b"sizes", b"relative_path", b"offset", b"length", b"fqn", b"size")),
    *(b"ctorch\nSize\n((I2\nI3\nltR", b"ctorch\nSize\n((I2\nltR", b"I1000000\n", b"S'../x'\n", b"S'__0_0.distcp'\n"),
)
READ_BYTES = 4096


def _save(folder: Path) -> None:
    """A checkpoint as torch writes it, of a matrix, a vector and a number."""
    import torch
    from torch.distributed.checkpoint.state_dict_saver import save

    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2), "deep": {"n": torch.tensor(3), "epoch": 3}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(state, checkpoint_id=str(folder))


def _prepare(folder: Path) -> Run:
    place = folder / "model"
    _save(place)
    metadata = os.open(place / ".metadata", os.O_RDWR)

    def run(data: bytes) -> None:
        os.ftruncate(metadata, 0)
        os.pwrite(metadata, data, 0)
        source = _open.open_checkpoint(place)
        for info in source.tensors.values():
            source.read_into(info, 0, memoryview(bytearray(min(info.nbytes, READ_BYTES))))
        source.close()

    return run


def _seeds() -> list[bytes]:
    """torch's own, in two protocols, and the corpus of pickles."""
    with TemporaryDirectory() as name:
        _save(Path(name))
        stated = (Path(name) / ".metadata").read_bytes()
    return [stated, pickle.dumps(pickle.loads(stated), 2), *pickles.PICKLE.seeds()[:8]]


def _mutate(data: bytes, most: int, random: Random) -> bytes:
    changed = _opcodes.mutate_program(data, random, GLOBALS) if random.random() < 0.8 else None
    return bytes(atheris.Mutate(data, most)) if changed is None else changed


TARGET = Target("dcp", _prepare, _seeds, (_dcp, _dcp_metadata, _open, _files, *pickles.WATCHED), _mutate)
