"""Folders of ``torch.distributed.checkpoint``: read in place, to the bytes of the whole tensors; nothing is trusted."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from tests.models._oracle import read
from tests.models._zoo import KINDS, load
from tests.train._ranks import launch
from torch.distributed.checkpoint import metadata as meta

import stockpot
from stockpot import errors
from stockpot.checkpoint import Source, open_checkpoint

NAMES = [f"{kind}{seed}" for kind in ("fsdp", "grid") for seed in range(3)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four ranks saved: FSDP2 models with their optimizers, and tensors cut along several axes."""
    folder = tmp_path_factory.mktemp("saved")
    code, output = launch("_dcp_ranks", 4, folder, package="tests.checkpoint")
    assert code == 0, output
    return folder


def content(source: Source, name: str, start: int = 0, size: int | None = None) -> bytes:
    """Bytes of a tensor's range."""
    info = source.tensors[name]
    room = bytearray(info.nbytes - start if size is None else size)
    source.read_into(info, start, memoryview(room))
    return bytes(room)


def raw(tensor: torch.Tensor) -> bytes:
    """Bytes of a tensor, dense."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@pytest.mark.parametrize("name", NAMES)
def test_every_range_is_that_of_the_whole_tensor(name: str, saved: Path) -> None:
    """Names, dtypes, shapes and bytes are those of the gathered tensors; so is every range, across all chunks."""
    whole = safetensors.torch.load_file(saved / f"{name}.safetensors")
    source = open_checkpoint(saved / name)
    assert source.tensors.keys() == whole.keys()
    for tensor, value in whole.items():
        data = raw(value)
        info = source.tensors[tensor]
        assert (info.shape, info.nbytes) == (tuple(value.shape), len(data)), tensor
        assert content(source, tensor) == data, tensor
        for start in range(0, len(data), 7):
            size = min(29, len(data) - start)
            assert content(source, tensor, start, size) == data[start : start + size], (tensor, start)
        view = source.view(info, 0, min(4, len(data))) if data else None
        assert view is None or view.data.tobytes() == data[:4]
    source.close()


@pytest.mark.parametrize("kind", ["fsdp", "grid"])
def test_a_merge_of_shards_is_the_merge_of_the_wholes(kind: str, saved: Path, tmp_path: Path) -> None:
    """Straight from the distributed folders, to the same bytes, and what was left out is said."""
    folders = [saved / f"{kind}{seed}" for seed in range(3)]
    result = stockpot.merge("model_stock", base=folders[0], models=folders[1:], out=tmp_path / "out")
    files = [folder.with_suffix(".safetensors") for folder in folders]
    stockpot.merge("model_stock", base=files[0], models=files[1:], out=tmp_path / "plain")
    found, expected = read(tmp_path / "out"), read(tmp_path / "plain")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert [p.name for p in (tmp_path / "out").glob("model*")] == ["model.safetensors"]
    assert stockpot.verify(tmp_path / "out", recompute=1.0).problems == ()
    if kind == "fsdp":
        assert any("'model' taken off" in said for said in result.warnings)
        assert any("no weights left out" in said for said in result.warnings)


def test_a_checkpoint_of_accelerate(saved: Path, tmp_path: Path) -> None:
    """``checkpoint-N/pytorch_model_fsdp_0`` beside its ``config.json``: the output loads with its library."""
    kind = KINDS["llama"]
    folders = []
    for seed in range(3):
        folder = tmp_path / f"checkpoint-{seed}"
        shutil.copytree(saved / f"fsdp{seed}", folder / "pytorch_model_fsdp_0")
        (folder / "optimizer_0").mkdir()
        kind.config(hidden_size=24, intermediate_size=34, vocab_size=66).save_pretrained(folder)
        (folder / "tokenizer_config.json").write_text("{}")
        folders.append(folder)
    stockpot.merge("model_stock", base=folders[0], models=folders[1:], out=tmp_path / "out")
    load(kind.cls, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == set()
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()


def test_beside_other_forms(saved: Path, tmp_path: Path) -> None:
    """A distributed base under fine-tunes in safetensors; the template is the first of those."""
    models = [saved / f"fsdp{seed}.safetensors" for seed in (1, 2)]
    stockpot.merge("model_stock", base=saved / "fsdp0", models=models, out=tmp_path / "out")
    stockpot.merge("model_stock", base=saved / "fsdp0.safetensors", models=models, out=tmp_path / "plain")
    found, expected = read(tmp_path / "out"), read(tmp_path / "plain")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"model": weights, "optim": {"state": {"a": torch.ones(3)}}, "step": 3},
        lambda weights: {"app": {"model": weights, "optimizer": {"a": torch.ones(3)}}},
        lambda weights: {"net": weights, "optimizer": {"state": {"a": torch.ones(3)}}},
        lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
        lambda weights: {**weights, "optimizer.state.a.exp_avg": torch.ones(3)},
    ],
    ids=["flat", "model", "app", "net", "prefix", "flat-optimizer"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_how_people_save(wrap: Callable[[dict[str, torch.Tensor]], Any], tmp_path: Path) -> None:
    """Whatever the state was called when it was saved, its weights come out under their own names, and only they."""
    weights = {"layer.0.weight": torch.randn(4, 3), "layer.0.bias": torch.randn(4).bfloat16()}
    dcp.save(wrap(weights), checkpoint_id=str(tmp_path / "in"))
    source = open_checkpoint(tmp_path / "in")
    assert {name: content(source, name) for name in source.tensors} == {n: raw(t) for n, t in weights.items()}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A small distributed checkpoint that tests damage."""
    folder = tmp_path / "in"
    torch.manual_seed(0)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"a": torch.randn(4, 3), "b": torch.randn(2)}, checkpoint_id=str(folder))
    return folder


def change(folder: Path, edit: Callable[[Any], object]) -> None:
    """The metadata, edited as an object and written back."""
    path = folder / ".metadata"
    stated = pickle.loads(path.read_bytes())
    edit(stated)
    path.write_bytes(pickle.dumps(stated))


def chunks(*boxes: tuple[tuple[int, ...], tuple[int, ...]]) -> Callable[[Any], None]:
    """Give tensor ``a`` these chunks (offsets, sizes), all of them somewhere in the file."""

    def edit(stated: Any) -> None:
        info = next(info for index, info in stated.storage_data.items() if index.fqn == "a")
        stated.state_dict_metadata["a"].chunks = [
            meta.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in boxes
        ]
        stated.storage_data.update({meta.MetadataIndex("a", torch.Size(offsets)): info for offsets, _ in boxes})

    return edit


def place(**fields: object) -> Callable[[Any], None]:
    """Say other things of where tensor ``a`` lies."""

    def edit(stated: Any) -> None:
        for index, info in stated.storage_data.items():
            if index.fqn == "a":
                for name, value in fields.items():
                    setattr(info, name, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "kind", "says"),
    [
        (chunks(((0, 0), (2, 3))), errors.HoleError, "chunks are missing"),
        (chunks(((0, 0), (1, 3)), ((2, 0), (2, 3))), errors.HoleError, "a gap"),
        (chunks(((0, 0), (3, 3)), ((2, 0), (2, 3))), errors.OverlapError, "overlap"),
        (chunks(((0, 0), (4, 2)), ((0, 2), (2, 1)), ((2, 2), (2, 1))), errors.OverlapError, "no grid"),
        (chunks(((0, 0), (2, 2)), ((2, 2), (2, 1))), errors.HoleError, "do not tile"),
        (chunks(((0, 0), (5, 3))), errors.OffsetError, "outside its tensor"),
        (chunks(), errors.HoleError, "chunks are missing"),
        (place(relative_path="../in/__0_0.distcp"), errors.ShardIndexError, "outside its folder"),
        (place(relative_path="/etc/passwd"), errors.ShardIndexError, "outside its folder"),
        (place(relative_path="__9_9.distcp"), errors.NotFoundError, "no such file"),
        (place(length=10**9), errors.TruncatedFileError, "ends before the chunk does"),
        (place(offset=-1), errors.PickleFormatError, "without a range"),
        (place(transform_descriptors=["zstd"]), errors.PickleFormatError, "transformed"),
        (lambda s: s.storage_data.clear(), errors.PickleFormatError, "no file holds"),
        (lambda s: setattr(s, "state_dict_metadata", {}), errors.PickleFormatError, "no state dict"),
        (
            lambda s: setattr(s.state_dict_metadata["a"], "size", torch.Size((2**40, 2**40))),
            errors.BadShapeError,
            "absurd",
        ),
    ],
)  # fmt: skip
def test_metadata_that_lies(
    edit: Callable[[Any], object], kind: type[errors.StockpotError], says: str, plain: Path
) -> None:
    """Chunks that do not tile their tensor, files elsewhere, ranges beyond the end: each is told by name."""
    change(plain, edit)
    with pytest.raises(kind, match=says):
        open_checkpoint(plain)


def test_metadata_that_asks_for_code(plain: Path, tmp_path: Path) -> None:
    """A global that no metadata needs is refused by name, and nothing of it runs."""
    mark = tmp_path / "mark"

    class Armed:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {mark}",)

    change(plain, lambda stated: setattr(stated, "planner_data", {"a": Armed()}))
    with pytest.raises(errors.UnsafePickleError, match="system"):
        open_checkpoint(plain)
    assert not mark.exists()


@pytest.mark.parametrize("data", [b"", b"\x80\x04N.", b"junk", b"\x80\x04}.", pickle.dumps({"a": 1})])
def test_metadata_that_is_none(data: bytes, plain: Path) -> None:
    """Anything else under that name is told as what it is."""
    (plain / ".metadata").write_bytes(data)
    with pytest.raises(errors.PickleFormatError):
        open_checkpoint(plain)


def test_a_chunk_of_another_tensor(plain: Path) -> None:
    """A range that holds another tensor than the metadata says is told when it is read."""

    def swap(stated: Any) -> None:
        by_name = {index.fqn: info for index, info in stated.storage_data.items()}
        by_name["a"].offset, by_name["b"].offset = by_name["b"].offset, by_name["a"].offset
        by_name["a"].length, by_name["b"].length = by_name["b"].length, by_name["a"].length

    change(plain, swap)
    source = open_checkpoint(plain)
    with pytest.raises(errors.PickleFormatError, match="not what the metadata says"):
        content(source, "a")


def test_a_damaged_chunk(plain: Path) -> None:
    """Bytes that are no archive are told when they are read, with the file."""
    (file,) = plain.glob("*.distcp")
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(errors.PickleFormatError, match=r"__0_0\.distcp"):
        content(open_checkpoint(plain), "a")


def test_a_chunk_truncated_after_opening(plain: Path, tmp_path: Path) -> None:
    """A file that became shorter ends the merge; nothing is finished."""
    source = open_checkpoint(plain)
    (file,) = plain.glob("*.distcp")
    os.truncate(file, 100)
    with pytest.raises((errors.PickleFormatError, errors.RunError)):
        content(source, "b")


def test_what_verify_says_of_changed_shards(plain: Path, tmp_path: Path) -> None:
    """Provenance lists every file of a distributed input."""
    shutil.copytree(plain, tmp_path / "other")
    stockpot.merge("linear", models=[plain, tmp_path / "other"], out=tmp_path / "out")
    record = json.loads((tmp_path / "out" / "stockpot.json").read_text())
    assert [file["name"] for file in record["inputs"][0]["files"]] == [".metadata", "__0_0.distcp"]
    change(plain, lambda stated: stated.state_dict_metadata.pop("b"))
    assert any("not the files" in said for said in stockpot.verify(tmp_path / "out", recompute=1.0).problems)
