"""Where output tensors lie: files as the template's, or by size; order, alignment, index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpot.checkpoint import Layout, OutFile, Spec, _dtypes, _header, nbytes, open_checkpoint, pack_file, plan_layout
from stockpot.checkpoint._open import Checkpoint

QUIET = settings(derandomize=True, deadline=None, max_examples=100)
SPECS: list[Spec] = [("a", "F32", (2, 2)), ("b", "F32", (4,)), ("c", "F32", ()), ("d", "F32", (0, 3))]


def template(
    folder: Path, shards: Sequence[Sequence[str]] = (("a", "b", "c", "d"),), stem: str = "model"
) -> Checkpoint:
    """A checkpoint with these tensors in these files."""
    weight_map = {}
    for number, names in enumerate(shards, 1):
        name = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        safetensors.torch.save_file({key: torch.zeros(1) for key in names}, folder / name)
        weight_map.update(dict.fromkeys(names, name))
    if len(shards) > 1:
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return open_checkpoint(folder)


def plan(folder: Path, specs: Sequence[Spec] = SPECS, **options: Any) -> Layout:
    """A layout after the template in a folder."""
    if not list(folder.iterdir()):
        template(folder)
    given: Mapping[str, Any] = {"shard_bytes": None, "single_file": False, "aliases": {}, **options}
    return plan_layout(specs, open_checkpoint(folder), **given)


def check(file: OutFile, specs: Mapping[str, Spec]) -> None:
    """Header, offsets and size of a file agree, and every tensor is aligned to its items."""
    infos, metadata = _header.parse(file.header[8:], file.size - len(file.header), file.name)
    assert metadata == {"format": "pt"}
    assert {info.name: (info.name, info.dtype, info.shape) for info in infos} == {
        name: specs[name] for name in file.offsets
    }
    for info in infos:
        assert file.offsets[info.name] == info.offset
        assert info.offset % max(_dtypes.itemsize(info.dtype), 1) == 0


def test_one_file_as_the_template(tmp_path: Path) -> None:
    """A template of one file gives one file of the same name, and no index."""
    layout = plan(tmp_path)
    assert [file.name for file in layout.files] == ["model.safetensors"]
    assert layout.indexes == {}
    assert list(layout.files[0].offsets) == ["a", "b", "c", "d"]
    assert layout.total_bytes == len(layout.files[0].header) + 36
    check(layout.files[0], {spec[0]: spec for spec in SPECS})


def test_shards_as_the_template(tmp_path: Path) -> None:
    """Each tensor goes into the file that holds it in the template; what it lacks into the last."""
    template(tmp_path, (("b", "d"), ("a",)))
    layout = plan(tmp_path)
    assert [(file.name, set(file.offsets)) for file in layout.files] == [
        ("model-00001-of-00002.safetensors", {"b", "d"}),
        ("model-00002-of-00002.safetensors", {"a", "c"}),
    ]
    ((name, content),) = layout.indexes.items()
    assert name == "model.safetensors.index.json"
    data = json.loads(content)
    assert data["metadata"]["total_size"] == 36
    assert data["weight_map"] == {n: file.name for file in layout.files for n in file.offsets}


def test_a_shard_that_is_left_empty(tmp_path: Path) -> None:
    """Files of the template that nothing goes into are not written, and the numbers close up."""
    template(tmp_path, (("a",), ("x",), ("b",)))
    layout = plan(tmp_path, [("a", "F32", (1,)), ("b", "F32", (1,))])
    assert [file.name for file in layout.files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, [["a"], ["b"], ["c"], ["d"]]),
        (16, [["a"], ["b"], ["c", "d"]]),
        (20, [["a"], ["b", "c", "d"]]),
        (32, [["a", "b"], ["c", "d"]]),
        (36, [["a", "b", "c", "d"]]),
        (10**9, [["a", "b", "c", "d"]]),
    ],
)
def test_shards_by_size(limit: int, expected: list[list[str]], tmp_path: Path) -> None:
    """Files are filled in order up to the limit; a larger tensor has its own."""
    layout = plan(tmp_path, shard_bytes=limit)
    assert [list(file.offsets) for file in layout.files] == expected
    assert (not layout.indexes) == (len(expected) == 1)


def test_single_file(tmp_path: Path) -> None:
    """One file holds all, whatever the template and the limit."""
    template(tmp_path, (("a",), ("b",)))
    assert len(plan(tmp_path, single_file=True, shard_bytes=1).files) == 1


@pytest.mark.parametrize("stem", ["model", "open_clip_model", "diffusion_pytorch_model", "adapter_model", "my.weights"])
def test_stem(stem: str, tmp_path: Path) -> None:
    """Files and index are called as the template's, sharded or not."""
    template(tmp_path, stem=stem)
    assert plan(tmp_path).files[0].name == f"{stem}.safetensors"
    split = plan(tmp_path, shard_bytes=16)
    assert split.files[0].name == f"{stem}-00001-of-00003.safetensors"
    assert list(split.indexes) == [f"{stem}.safetensors.index.json"]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("pytorch_model.bin", "model"),
        ("open_clip_model.pt", "open_clip_model"),
        ("open_clip_pytorch_model.bin", "open_clip_model"),
        ("diffusion_pytorch_model.bin", "diffusion_pytorch_model"),
        ("last.ckpt", "model"),
    ],
)
def test_stem_of_a_pickle(name: str, stem: str, tmp_path: Path) -> None:
    """A pickled template comes out as safetensors under the name that libraries look for."""
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    assert plan(tmp_path, [("a", "F32", (1,))]).files[0].name == f"{stem}.safetensors"


def test_stem_of_a_single_file(tmp_path: Path) -> None:
    """A template that is a file of any name gives a folder that libraries load."""
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "seed-17.safetensors")
    layout = plan_layout(
        [("a", "F32", (1,))],
        open_checkpoint(tmp_path / "seed-17.safetensors"),
        shard_bytes=None,
        single_file=False,
        aliases={},
    )
    assert layout.files[0].name == "model.safetensors"


def test_wider_dtypes_come_first(tmp_path: Path) -> None:
    """Within a file wider dtypes lie first, so that each tensor is aligned; within a dtype the order is kept."""
    specs: list[Spec] = [
        ("i", "I8", (3,)),
        ("h", "F16", (3,)),
        ("d", "F64", (1,)),
        ("f", "F32", (1,)),
        ("g", "F16", (1,)),
    ]
    layout = plan(tmp_path, specs)
    (file,) = layout.files
    assert list(file.offsets) == ["d", "f", "h", "g", "i"]
    check(file, {spec[0]: spec for spec in specs})


def test_reserve_is_room_in_the_header() -> None:
    """The same tensors with more metadata fit the header that was planned with room."""
    planned = pack_file("x", SPECS, {"format": "pt"}, reserve=2000)
    final = pack_file("x", SPECS, {"format": "pt", "stockpot": "y" * 1500}, reserve=2000)
    assert len(planned.header) == len(final.header)
    assert planned.offsets == final.offsets


def test_no_tensors(tmp_path: Path) -> None:
    """Nothing gives one file without tensors."""
    (file,) = plan(tmp_path, []).files
    assert file.size == len(file.header)


@QUIET
@given(
    shapes=st.lists(
        st.tuples(
            st.sampled_from([code for code, bits in _dtypes.BITS.items() if bits >= 8]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        min_size=1,
        max_size=12,
    ),
    limit=st.none() | st.integers(1, 400),
)
def test_any_layout_is_whole(
    shapes: list[tuple[str, list[int]]], limit: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every tensor lies in one file; headers, offsets and sizes agree; no file is too large unless it must be."""
    folder = tmp_path_factory.getbasetemp() / "layout"
    folder.mkdir(exist_ok=True)
    specs: list[Spec] = [(f"t{n}", dtype, tuple(shape)) for n, (dtype, shape) in enumerate(shapes)]
    layout = plan(folder, specs, shard_bytes=limit)
    names = [name for file in layout.files for name in file.offsets]
    assert sorted(names) == sorted(spec[0] for spec in specs)
    by_name = {spec[0]: spec for spec in specs}
    for file in layout.files:
        check(file, by_name)
        sizes = [nbytes(by_name[name][1], by_name[name][2]) for name in file.offsets]
        assert limit is None or sum(sizes) <= limit or sum(size > 0 for size in sizes) == 1
