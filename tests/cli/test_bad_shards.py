"""Indexes that lie, and shards that are not there: refused by name, and nothing written."""

from __future__ import annotations

import pytest

from ._kitchen import Kitchen, Program, numbers, save, sharded, write_index


def test_sharded_checkpoint_is_good(program: Program, kitchen: Kitchen) -> None:
    """The checkpoint that the next tests damage is merged."""
    sharded(kitchen)
    program.does(*kitchen.stock())


INDEXES: dict[str, tuple[object, list[str]]] = {
    "missing file": (
        "model-00009-of-00003.safetensors",
        ["not there", "'model-00009-of-00003.safetensors'", "missing shard"],
    ),
    "above the folder": (
        "../base/model.safetensors",
        ["outside", "'../base/model.safetensors'", "plain relative name"],
    ),
    "above by a detour": ("x/../../base/model.safetensors", ["outside"]),
    "absolute": ("/etc/passwd", ["outside", "'/etc/passwd'"]),
    "backslashes": ("..\\base\\model.safetensors", ["outside"]),
    "empty": ("", ["index"]),
    "a zero byte": ("model\0.safetensors", ["outside"]),
    "the folder": (".", ["index"]),
    "too long": ("x" * 300, ["not there"]),
    "half a surrogate": ("\ud800", ["index"]),
    "a number": (3, ["weight_map"]),
    "a list": (["model.safetensors"], ["weight_map"]),
}


@pytest.mark.parametrize("case", INDEXES)
def test_index_entry_that_lies(case: str, program: Program, kitchen: Kitchen) -> None:
    """An index may name plain files of its folder only, and they must be there."""
    folder, weight_map = sharded(kitchen)
    target, says = INDEXES[case]
    write_index(folder, {**weight_map, "norm.weight": target})
    program.refuses(*kitchen.stock(), kind="shard_index", says=["a/model.safetensors.index.json", *says])


def test_index_through_a_symlinked_folder(program: Program, kitchen: Kitchen) -> None:
    """A symlinked folder inside a checkpoint is no way out of it."""
    folder, weight_map = sharded(kitchen)
    (folder / "sub").symlink_to(kitchen.base)
    write_index(folder, {**weight_map, "norm.weight": "sub/model.safetensors"})
    program.refuses(*kitchen.stock(), kind="shard_index", says=["symlinked folder", "sub/model.safetensors"])


def test_shards_that_are_symlinks_are_read(program: Program, kitchen: Kitchen) -> None:
    """The Hub's cache stores shards as symlinks to files elsewhere: they are read."""
    folder, weight_map = sharded(kitchen)
    for number, name in enumerate(weight_map.values()):
        (folder / name).rename(kitchen.root / f"blob{number}")
        (folder / name).symlink_to(f"../blob{number}")
    program.does(*kitchen.stock())


def test_dangling_symlink(program: Program, kitchen: Kitchen) -> None:
    """A link to a blob that is gone is not there."""
    (kitchen.a / "model.safetensors").unlink()
    (kitchen.a / "model.safetensors").symlink_to("../blobs/gone")
    program.refuses(*kitchen.stock(), kind="not_found", says=["a/model.safetensors"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ghost.weight": "model-00001-of-00003.safetensors"}, ["ghost.weight"]),
        ({"norm.weight": "model-00001-of-00003.safetensors"}, ["norm.weight"]),
        ({"norm.weight": None}, ["norm.weight"]),
    ],
    ids=["a tensor that is nowhere", "the wrong shard", "a tensor not listed"],
)
def test_index_and_shards_disagree(
    change: dict[str, str | None], says: list[str], program: Program, kitchen: Kitchen
) -> None:
    """An index that says another place than the shards do is refused, naming the tensor."""
    folder, weight_map = sharded(kitchen)
    write_index(folder, {name: file for name, file in {**weight_map, **change}.items() if file is not None})
    if change.get("norm.weight", "") is None:
        (folder / "model.safetensors.index.json").write_text(
            (folder / "model.safetensors.index.json")
            .read_text()
            .replace(weight_map["layers.1.weight"], weight_map["norm.weight"])
        )
    outcome = program.refuses(*kitchen.stock(), kind="shard_index", says=["disagree", "a/model.safetensors.index.json"])
    assert any(word in outcome.first + " ".join(outcome.problems) for word in says)


def test_index_names_the_wrong_folder(program: Program, kitchen: Kitchen) -> None:
    """Two shards of one name in two subfolders are told apart."""
    tensors = kitchen.tensors(1)
    names = list(tensors)
    (kitchen.a / "model.safetensors").unlink()
    save({names[0]: tensors[names[0]]}, kitchen.a / "x" / "s.safetensors")
    save({name: tensors[name] for name in names[1:]}, kitchen.a / "y" / "s.safetensors")
    write_index(kitchen.a, {names[0]: "y/s.safetensors", names[1]: "x/s.safetensors", names[2]: "y/s.safetensors"})
    program.refuses(*kitchen.stock(), kind="shard_index", says=["disagree"])


def test_tensor_in_two_shards(program: Program, kitchen: Kitchen) -> None:
    """A tensor that two shards hold is refused, naming it."""
    folder, weight_map = sharded(kitchen)
    file = folder / weight_map["norm.weight"]
    save({"norm.weight": numbers(4), "layers.0.weight": numbers(4, 3)}, file)
    program.refuses(*kitchen.stock(), kind="duplicate_name", says=["layers.0.weight", "two shards"])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"{}",
        b'{"weight_map": []}',
        b'{"weight_map": {}}',
        b'{"weight_map": null}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_index_that_is_no_index(text: bytes, program: Program, kitchen: Kitchen) -> None:
    """An index that is no JSON object with a weight_map is refused, naming it."""
    folder, _ = sharded(kitchen)
    (folder / "model.safetensors.index.json").write_bytes(text)
    program.refuses(*kitchen.stock(), kind="shard_index", says=["a/model.safetensors.index.json", "index"])
