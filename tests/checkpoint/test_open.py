"""Opening: which file of a folder is the checkpoint, indexes, links, Hub ids, identity, range reads."""

from __future__ import annotations

import gc
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from stockpot import errors
from stockpot.checkpoint import _descriptors, _hub, is_weight_file, open_checkpoint

ANY = b"\x08\0\0\0\0\0\0\0{}      "
"""A right file without tensors."""


def marked(path: Path, number: int) -> None:
    """A checkpoint file whose only tensor is named after a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"t{number}": torch.full((2,), float(number))}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)


def index(path: Path, weight_map: dict[str, str]) -> None:
    """A shard index."""
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


CHOICES: dict[str, tuple[list[str], int]] = {
    "model.safetensors": (["model.safetensors"], 0),
    "model before others": (["ema.safetensors", "model.safetensors", "zz.safetensors"], 1),
    "a sole safetensors of any name": (["open_clip_model.safetensors"], 0),
    "safetensors before bin": (["pytorch_model.bin", "model.safetensors"], 1),
    "a sole safetensors before bin": (["pytorch_model.bin", "weights.safetensors"], 1),
    "pytorch_model.bin": (["pytorch_model.bin"], 0),
    "pytorch_model.bin before others": (["a.pt", "pytorch_model.bin"], 1),
    "a sole pickle": (["last.ckpt"], 0),
    "training state aside": (
        ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt", "w.pt"],
        5,
    ),
    "an optimizer in safetensors": (["optimizer.safetensors", "w.safetensors"], 1),
    "hidden files aside": ([".cache.safetensors", "w.safetensors"], 1),
    "our inner products aside": (["stockpot_geometry.safetensors", "open_clip_model.safetensors"], 1),
}


@pytest.mark.parametrize("case", CHOICES)
def test_choice_in_a_folder(case: str, tmp_path: Path) -> None:
    """Of several files one is the checkpoint: index, model.safetensors, a sole safetensors, then pickles."""
    names, chosen = CHOICES[case]
    for number, name in enumerate(names):
        marked(tmp_path / name, number)
    (tmp_path / "config.json").write_text("{}")
    assert list(open_checkpoint(tmp_path).tensors) == [f"t{chosen}"]


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json"])
def test_index_comes_first(name: str, tmp_path: Path) -> None:
    """An index wins over a single file beside its shards."""
    marked(tmp_path / "model.safetensors", 0)
    marked(tmp_path / "x-1.safetensors", 1)
    marked(tmp_path / "x-2.safetensors", 2)
    index(tmp_path / name, {"t1": "x-1.safetensors", "t2": "x-2.safetensors"})
    assert set(open_checkpoint(tmp_path).tensors) == {"t1", "t2"}


def test_index_of_pickles(tmp_path: Path) -> None:
    """The index of pickled shards is read where there are no safetensors."""
    marked(tmp_path / "pytorch_model-00001-of-00002.bin", 1)
    marked(tmp_path / "pytorch_model-00002-of-00002.bin", 2)
    index(
        tmp_path / "pytorch_model.bin.index.json",
        {"t1": "pytorch_model-00001-of-00002.bin", "t2": "pytorch_model-00002-of-00002.bin"},
    )
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == {"t1", "t2"}
    assert checkpoint.is_pickle


@pytest.mark.parametrize(
    "names",
    [
        ["a.safetensors", "b.safetensors"],
        ["a.pt", "b.pth"],
        ["a.safetensors.index.json", "b.safetensors.index.json"],
    ],
)
def test_several_candidates_are_listed(names: list[str], tmp_path: Path) -> None:
    """Where several could be meant, none is taken; the refusal lists them."""
    for name in names:
        (tmp_path / name).write_bytes(ANY)
    with pytest.raises(errors.NoWeightsError) as caught:
        open_checkpoint(tmp_path)
    for name in names:
        assert name in caught.value.line()


def test_shards_in_subfolders(tmp_path: Path) -> None:
    """An index may name files in plain subfolders."""
    marked(tmp_path / "a" / "s.safetensors", 1)
    marked(tmp_path / "b" / "s.safetensors", 2)
    index(tmp_path / "model.safetensors.index.json", {"t1": "a/s.safetensors", "t2": "b/s.safetensors"})
    assert set(open_checkpoint(tmp_path).tensors) == {"t1", "t2"}


def test_a_folder_that_is_a_symlink(tmp_path: Path) -> None:
    """The checkpoint's own folder may be a symlink, and its files too."""
    marked(tmp_path / "blobs" / "x.safetensors", 1)
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "model.safetensors").symlink_to("../blobs/x.safetensors")
    (tmp_path / "link").symlink_to("real")
    assert set(open_checkpoint(tmp_path / "link").tensors) == {"t1"}


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_file(name: str, device: str, tmp_path: Path) -> None:
    """A link to a device is refused before anything is read from it."""
    (tmp_path / name).symlink_to(device)
    with pytest.raises(errors.CheckpointError, match="regular"):
        open_checkpoint(tmp_path)


def test_aliases_of_the_metadata(tmp_path: Path) -> None:
    """Names that ``__metadata__`` says to be another tensor are aliases of it."""
    safetensors.torch.save_file({"embed": torch.ones(2)}, tmp_path / "m.safetensors", {"head": "embed", "format": "pt"})
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert dict(checkpoint.aliases) == {"head": "embed"}
    assert checkpoint.metadata["format"] == "pt"


@pytest.mark.parametrize("config", ["", "[]", "3", "{", '{"a": 1}', "[" * 100_000])
def test_config_is_a_map_or_nothing(config: str, tmp_path: Path) -> None:
    """A config that cannot be read is an empty one; it decides nothing about the weights."""
    marked(tmp_path / "model.safetensors", 0)
    (tmp_path / "config.json").write_text(config)
    assert open_checkpoint(tmp_path).parts[0].config == ({"a": 1} if config == '{"a": 1}' else {})


@pytest.mark.parametrize("ref", ["a/b", "A-1/b.c_d", "a/b@main", "a/b@refs/pr/1"])
def test_hub_ids(ref: str) -> None:
    """``name/name[@revision]`` has the form of a Hub id."""
    assert _hub.is_hub_id(ref)


@pytest.mark.parametrize(
    "ref", ["a", "./a/b", "../a", "/a/b", "~/a", "a/b/c", ".a/b", "a/.b", "a b/c", "", "a/b@", "a/b\n"]
)
def test_no_hub_ids(ref: str) -> None:
    """Anything that could be meant as a path is none."""
    assert not _hub.is_hub_id(ref)


@pytest.mark.parametrize("ref", ["./a/b", "../a/b", "~/a/b", "/a/b", "a", "a/b/c"])
def test_a_path_is_never_asked_of_the_hub(ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is not there is not looked for elsewhere, given as text or as a path."""
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", asked)
    monkeypatch.chdir(tmp_path)
    for given in (ref, Path(ref)):
        with pytest.raises(errors.NotFoundError, match="no such file or folder"):
            open_checkpoint(given)


def test_an_existing_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``a/b`` is the folder where there is one."""
    monkeypatch.chdir(tmp_path)
    marked(tmp_path / "a" / "b" / "model.safetensors", 0)
    assert set(open_checkpoint("a/b").tensors) == {"t0"}


CHANGES: dict[str, Callable[[Path], object]] = {
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "written again": lambda path: (path.write_bytes(path.read_bytes()), os.utime(path, ns=(1, 1))),
    "replaced": lambda path: (path.with_name("n").write_bytes(path.read_bytes()), path.with_name("n").replace(path)),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("case", CHANGES)
def test_identity_notices(case: str, tmp_path: Path) -> None:
    """A file that was changed, replaced or removed since it was opened is not current."""
    path = tmp_path / "model.safetensors"
    marked(path, 0)
    (identity,) = open_checkpoint(path).files
    assert identity.is_current()
    CHANGES[case](path)
    assert not identity.is_current()


def test_header_digest_tells_headers_apart(tmp_path: Path) -> None:
    """Identity holds the digest of the header: other names, other digest; other data, the same."""
    for number, (name, value) in enumerate([("w", 1.0), ("w", 2.0), ("v", 1.0)]):
        safetensors.torch.save_file({name: torch.full((2,), value)}, tmp_path / f"{number}.safetensors")
    digests = [open_checkpoint(tmp_path / f"{number}.safetensors").files[0].header_digest for number in range(3)]
    assert digests[0] == digests[1] != digests[2]


def open_descriptors() -> int:
    """Descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_reads_by_range_from_threads(tmp_path: Path) -> None:
    """Many threads read pieces of many files through few descriptors, and each gets its own bytes."""
    count = 12
    for number in range(count):
        safetensors.torch.save_file(
            {f"t{number}": torch.full((64,), number, dtype=torch.uint8)}, tmp_path / f"{number:02d}.safetensors"
        )
    index(
        tmp_path / "model.safetensors.index.json",
        {f"t{number}": f"{number:02d}.safetensors" for number in range(count)},
    )
    checkpoint = open_checkpoint(tmp_path)
    wrong = []

    def work(seed: int) -> None:
        for step in range(200):
            number = (seed * 7 + step * 5) % count
            out = bytearray(10)
            checkpoint.read_into(checkpoint.tensors[f"t{number}"], step % 50, memoryview(out))
            if out != bytes([number]) * 10:
                wrong.append(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_descriptors, "MOST", 3)
        gc.collect()  # files of other tests
        before = open_descriptors()
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # Three descriptors, and at most one for each thread that reads while all others are busy.
        assert open_descriptors() <= before + 3 + 6
    assert wrong == []
    checkpoint.close()
    assert open_descriptors() == before


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    """A file cut since it was opened breaks the reading, by name; it never gives zeros."""
    path = tmp_path / "model.safetensors"
    marked(path, 3)
    checkpoint = open_checkpoint(path)
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(errors.InputChangedError) as caught:
        checkpoint.read_into(checkpoint.tensors["t3"], 0, memoryview(bytearray(8)))
    assert caught.value.file == str(path)
    assert caught.value.exit_code == 1


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    """A file removed between opening and reading is an error of the run, by name."""
    path = tmp_path / "model.safetensors"
    marked(path, 3)
    checkpoint = open_checkpoint(path)
    path.unlink()
    with pytest.raises(errors.RunError) as caught:
        checkpoint.read_into(checkpoint.tensors["t3"], 0, memoryview(bytearray(8)))
    assert caught.value.file == str(path)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "pytorch_model.bin",
        "a.pt",
        "A.CKPT",
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
        "model.safetensors.index.fp16.json",
        "tf_model.h5",
        "flax_model.msgpack",
        "x.gguf",
        "x.onnx",
    ],
)
def test_weight_files(name: str) -> None:
    """Weights and their indexes are never taken for side files."""
    assert is_weight_file(name)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "vocab.txt", "merges.txt", "spiece.model", "modeling.py", "LICENSE"]
)
def test_side_files(name: str) -> None:
    """What belongs to a model beside its weights is no weight file."""
    assert not is_weight_file(name)
