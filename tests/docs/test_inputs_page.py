"""The page of inputs: its commands run, and each message that it quotes is the one that the program gives."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from tests.adapters._loras import save as save_adapters

import stockpot
from stockpot import errors

PAGE = Path(__file__).parents[2].joinpath("docs", "inputs.md").read_text("utf-8")
QUOTED = re.findall(r"`([^`]+)`", PAGE.split("| what | WHAT |")[1])
SAID_ELSEWHERE = {
    "no such path, and no model of this Hub id": "tests/cli/test_hub.py",
    "the model is gated": "tests/cli/test_hub.py",
    "not in the hub's cache": "tests/checkpoint/test_hub.py",
    "--allow-nonfinite": "docs",
}


def folder(place: Path, **tensors: torch.Tensor) -> Path:
    """A small model."""
    place.mkdir(parents=True)
    save_file(tensors or {"w": torch.ones(2, 4)}, place / "model.safetensors")
    return place


def indexed(root: Path, shard: str) -> Path:
    """A folder whose index names that file for its only tensor."""
    place = folder(root / "indexed")
    (place / "model.safetensors").rename(place / "model-00001-of-00001.safetensors")
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    return place


class Armed:
    """A pickle that runs a command when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def pickled(place: Path, content: object) -> Path:
    place.write_bytes(pickle.dumps(content)) if isinstance(content, bytes) else torch.save(content, place)
    return place


def cut(root: Path) -> Path:
    file = folder(root / "cut") / "model.safetensors"
    os.truncate(file, file.stat().st_size - 4)
    return file


def lying(root: Path, **offsets: list[int]) -> Path:
    entries = {name: {"dtype": "F32", "shape": [1], "data_offsets": places} for name, places in offsets.items()}
    text = json.dumps(entries).encode()
    data = bytes(max(end for _, end in offsets.values()))
    (root / "lying.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return root / "lying.safetensors"


def chunked(root: Path, edit: Callable[[Any], object]) -> Path:
    place = root / "chunked"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"w": torch.ones(4, 2)}, checkpoint_id=str(place))
    stated = pickle.loads((place / ".metadata").read_bytes())
    edit(stated)
    (place / ".metadata").write_bytes(pickle.dumps(stated))
    return place


def fewer_chunks(stated: Any) -> None:
    stated.state_dict_metadata["w"].chunks = []


def twice(stated: Any) -> None:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

    ((index, info),) = stated.storage_data.items()
    chunks = stated.state_dict_metadata["w"].chunks
    chunks.append(ChunkStorageMetadata(torch.Size((1, 0)), torch.Size((3, 2))))
    stated.storage_data[MetadataIndex(index.fqn, torch.Size((1, 0)))] = info


def compressed(stated: Any) -> None:
    (info,) = stated.storage_data.values()
    info.transform_descriptors = ["zstd"]


def adapter(root: Path, **stated: Any) -> str:
    base, (one, _) = save_adapters("plain", root)
    path = one / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **stated}))
    return f"{base}+{one}"


def of_another_base(root: Path) -> str:
    _, (one, _) = save_adapters("plain", root)
    return f"{folder(root / 'other')}+{one}"


def tied(root: Path) -> str:
    base, (one, _) = save_adapters("embedding", root)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    return f"{base}+{one}"


def beside_models(root: Path) -> None:
    base, (one, _) = save_adapters("plain", root)
    merged(root, base, one)


def merged(root: Path, *models: Path, out: str = "out") -> None:
    stockpot.merge("linear", models=models, out=root / out)


def fp8(root: Path) -> None:
    values = (torch.ones(4), torch.zeros(4))
    models = [folder(root / f"m{n}", w=value.to(torch.float8_e4m3fn)) for n, value in enumerate(values)]
    merged(root, *models)


def pipeline(root: Path) -> Path:
    for part in ("unet", "vae"):
        folder(root / "pipeline" / part)
    (root / "pipeline" / "model_index.json").write_text(json.dumps({"unet": ["a", "b"], "vae": ["a", "b"]}))
    return root / "pipeline"


def linked(root: Path) -> None:
    place = folder(root / "linked")
    (root / "elsewhere").mkdir()
    (place / "code").symlink_to(root / "elsewhere")
    merged(root, place)


def nan(root: Path) -> None:
    values = torch.ones(2, 4)
    values[0, 3] = torch.nan
    merged(root, folder(root / "nan", w=values), folder(root / "one"))


def several(root: Path) -> Path:
    place = folder(root / "several")
    (place / "model.safetensors").rename(place / "a.safetensors")
    shutil.copy(place / "a.safetensors", place / "b.safetensors")
    return place


def empty(root: Path) -> Path:
    (root / "empty").mkdir()
    return root / "empty"


def other(root: Path) -> Path:
    (root / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    return root / "model.gguf"


def disagreeing(root: Path) -> Path:
    place = indexed(root, "model-00001-of-00001.safetensors")
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors", "v": "model-00001-of-00001.safetensors"}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return place


CASES: dict[str, Callable[[Path], object]] = {
    "no such file or folder": lambda root: root / "none",
    "no weights in this folder": empty,
    "several checkpoints in one folder": several,
    "not a checkpoint": other,
    "float8_e4m3fn values differ between the models": fp8,
    "the pickle asks for posix.system, which is not part of a state dict; nothing of it was run": lambda root: pickled(
        root / "armed.pt", {"w": torch.ones(2), "x": Armed()}
    ),
    "no state dict in this file": lambda root: pickled(root / "none.pt", {"epoch": 3}),
    "the file ends before the tensor does": cut,
    "bytes that belong to no tensor": lambda root: lying(root, w=[4, 8]),
    "two tensors share bytes": lambda root: lying(root, w=[0, 4], v=[0, 4]),
    "the index and its shards disagree": disagreeing,
    "the index names a file that is not there": lambda root: indexed(root, "gone.safetensors"),
    "the index names a file outside its folder": lambda root: indexed(root, "../w.safetensors"),
    "a symlinked folder inside a checkpoint": linked,
    "chunks are missing": lambda root: chunked(root, fewer_chunks),
    "the chunks overlap, or form no grid": lambda root: chunked(root, twice),
    "the chunks are compressed or otherwise transformed: save them plain": lambda root: chunked(root, compressed),
    "an adapter of another kind": lambda root: adapter(root, peft_type="IA3"),
    "DoRA is not understood": lambda root: adapter(root, use_dora=True),
    "the adapter began as pissa, which takes a part out of the base": lambda root: adapter(
        root, init_lora_weights="pissa"
    ),
    "the adapter changes what the base lacks": of_another_base,
    "the adapter changes a tensor that its base ties to another": tied,
    "an adapter is no model": beside_models,
    "a checkpoint of several parts does not fit into one file": lambda root: merged(
        root, pipeline(root), out="out.safetensors"
    ),
    "an input is not finite at index [0, 3]": nan,
}


def test_every_message_of_the_page_is_tried() -> None:
    """What the page quotes is in the cases below, or in the test that is named."""
    assert set(QUOTED) == {*CASES, *SAID_ELSEWHERE}


def opened(case: Callable[[Path], object], root: Path) -> None:
    stockpot.open_checkpoint(str(case(root)))


@pytest.mark.parametrize("said", CASES)
def test_the_message(said: str, tmp_path: Path) -> None:
    """The case gives an error of exit code 2 that begins with these very words."""
    with pytest.raises(errors.StockpotError) as caught:
        opened(CASES[said], tmp_path)
    assert caught.value.exit_code == 2
    assert caught.value.line().startswith(said), caught.value.line()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("said", [said for said, where in SAID_ELSEWHERE.items() if where.startswith("tests/")])
def test_the_message_is_tried_there(said: str) -> None:
    """The words stand in the test that the table above names."""
    assert said in (Path(__file__).parents[2] / SAID_ELSEWHERE[said]).read_text("utf-8")


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of the page, as it stands there, on small models of those names."""
    from stockpot.cli import main

    save_adapters("plain", tmp_path, 3)
    for number in (1, 2, 3):
        (tmp_path / f"adapter{number}").rename(tmp_path / f"lora-{number}")
    for step in range(1, 8):
        folder(tmp_path / "runs" / "one" / f"checkpoint-{step}", w=torch.full((2, 2), float(step)))
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^\$ stockpot (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        shutil.rmtree("lora", ignore_errors=True)
        assert main(command.split()) == 0, command
    averaged = stockpot.open_checkpoint("averaged")
    room = bytearray(16)
    averaged.read_into(averaged.tensors["w"], 0, memoryview(room))
    assert np.frombuffer(room, np.float32).tolist() == [5.0] * 4
