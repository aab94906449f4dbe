"""``stockpot verify``: whole outputs pass, every damaged file is found and named."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from ._kitchen import Kitchen, Program, check_error, numbers, save

FILES = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "stockpot.json",
    "stockpot_run.json",
    "stockpot_recipe.yaml",
    "stockpot_geometry.safetensors",
    "README.md",
    "SHA256SUMS",
)


@pytest.mark.parametrize("fraction", [[], ["--recompute", "0.4"], ["--recompute", "1"]])
@pytest.mark.parametrize(
    "more", [[], ["--granularity", "row"], ["--granularity", "block"], ["--dtype", "bfloat16"], ["--exclude", "norm"]]
)
def test_whole_output(more: list[str], fraction: list[str], program: Program, kitchen: Kitchen) -> None:
    """A whole output is said to be whole, with --recompute to the last bit."""
    program.does(*kitchen.stock(*more))
    outcome = program.does("verify", kitchen.out, *fraction)
    assert outcome.out == ""
    assert "whole" in outcome.err
    data = program.does("verify", kitchen.out, *fraction, "--json").data
    assert (data["command"], data["status"], data["problems"]) == ("verify", "done", [])
    assert data["tensors"] == 3
    assert data["recomputed"] == {0: 0, 2: data["recomputed"]}[len(fraction)]
    assert bool(data["recomputed"]) == bool(fraction)
    assert program.does("verify", kitchen.out, "--quiet").err == ""


def positions(size: int, name: str) -> list[int]:
    """Where to flip a byte: ends, middle, and (for weights) length, header and data."""
    return sorted(
        {0, 7, 8, 30, size // 3, size // 2, size - 1} if name.endswith(".safetensors") else {0, size // 2, size - 2}
    )


def assert_damage(program: Program, out: Path, name: str) -> None:
    """verify says what is damaged, and exits 1."""
    outcome = program.fails("verify", out, kind="damage", command="verify", says=["damage found"])
    assert name in "\n".join([outcome.first, *outcome.problems])


@pytest.mark.parametrize("name", FILES)
def test_flipped_byte(name: str, program: Program, kitchen: Kitchen) -> None:
    """One flipped bit anywhere in any file is found, and the file is named."""
    program.does(*kitchen.stock())
    assert sorted(FILES) == sorted(path.name for path in kitchen.out.iterdir())
    file = kitchen.out / name
    content = file.read_bytes()
    for at in positions(len(content), name):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert_damage(program, kitchen.out, name)
    file.write_bytes(content)
    program.does("verify", kitchen.out)


@pytest.mark.parametrize("name", FILES)
def test_file_gone(name: str, program: Program, kitchen: Kitchen) -> None:
    """A file that is gone is found missing."""
    program.does(*kitchen.stock())
    (kitchen.out / name).unlink()
    assert_damage(program, kitchen.out, name)


@pytest.mark.parametrize("name", FILES)
def test_file_cut_or_longer(name: str, program: Program, kitchen: Kitchen) -> None:
    """A file that was cut, or that something was added to, is found."""
    program.does(*kitchen.stock())
    file = kitchen.out / name
    content = file.read_bytes()
    for damaged in (content[:-1], content[: len(content) // 2], b"", content + b"\n"):
        if name == "SHA256SUMS" and damaged in (content[:-1], content + b"\n"):
            continue
        file.write_bytes(damaged)
        assert_damage(program, kitchen.out, name)


def test_sharded_output(program: Program, kitchen: Kitchen) -> None:
    """Every shard and the index are checked."""
    program.does(*kitchen.stock("--shard-size", "60B"))
    for name in (
        "model-00001-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ):
        file = kitchen.out / name
        content = file.read_bytes()
        file.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        assert_damage(program, kitchen.out, name)
        file.write_bytes(content)
    (kitchen.out / "model-00002-of-00003.safetensors").unlink()
    assert_damage(program, kitchen.out, "model-00002-of-00003.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_one_file(suffix: str, program: Program, kitchen: Kitchen) -> None:
    """In a one-file output a flipped bit in any tensor is found, and so is a file that was cut."""
    out = kitchen.root / f"one{suffix}"
    program.does(*kitchen.stock(out=out))
    program.does("verify", out, "--recompute", "1")
    content = out.read_bytes()
    for tensor in ("layers.0.weight", "layers.1.weight", "norm.weight"):
        from stockpot.checkpoint import open_checkpoint

        out.write_bytes(content)
        at = open_checkpoint(out).tensors[tensor].offset + 5
        out.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert_damage(program, out, tensor)
    out.write_bytes(content[:-20])
    outcome = program("verify", out)
    check_error(outcome, 1, ["one"])


def test_one_file_header(program: Program, kitchen: Kitchen) -> None:
    """A flipped bit in the provenance of a one-file output (a digest, a coefficient) is found by verify."""
    out = kitchen.root / "one.safetensors"
    program.does(*kitchen.stock(out=out))
    content = out.read_bytes()
    for word in (b"xxh3", b"weights", b"ratio", b"merge_method"):
        at = content.index(word) + len(word) + 8
        while not chr(content[at]).isalnum():
            at += 1
        out.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        outcome = program("verify", out)
        check_error(outcome, 1, ["one.safetensors"])


@pytest.mark.parametrize("name", ["a", "a/model.safetensors", "plain.pt"])
def test_not_an_output(name: str, program: Program, kitchen: Kitchen) -> None:
    """What stockpot did not make cannot be verified: exit 2, not damage."""
    torch.save({"w": numbers(2)}, kitchen.root / "plain.pt")
    program.refuses("verify", name, kind="not_an_output", command="verify", says=["not an output of stockpot", name])


@pytest.mark.parametrize("name", ["nowhere", "./no/where", "nowhere.safetensors"])
def test_not_there(name: str, program: Program, kitchen: Kitchen) -> None:
    """What is not there cannot be verified: exit 2; nothing is asked of a hub."""
    assert kitchen.root.is_dir()
    program.refuses("verify", name, kind="not_found", command="verify", says=["no such", name.removeprefix("./")])


def rewrite(kitchen: Kitchen, **changes: object) -> None:
    """Change the provenance and its sum alike, so that only what it says is at fault."""
    place = kitchen.out / "stockpot.json"
    before = hashlib.sha256(place.read_bytes()).hexdigest()
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))
    sums = kitchen.out / "SHA256SUMS"
    assert before in sums.read_text()
    sums.write_text(sums.read_text().replace(before, hashlib.sha256(place.read_bytes()).hexdigest()))


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": []},
        {"tensors": {}},
        {"tensors": None},
        {"tensors": {"norm.weight": 3}},
        {"files": 5},
        {"files": [3]},
        {"files": [{}]},
        {"files": [{"name": "../base/model.safetensors", "bytes": 1, "header_xxh3": ""}]},
        {"recipe": None},
        {"recipe": {}},
        {"inputs": None},
        {"inputs": []},
        {"inputs": [3]},
    ],
    ids=str,
)
def test_provenance_that_lies(changes: dict[str, object], program: Program, kitchen: Kitchen) -> None:
    """A provenance of other kinds of values is an error of ours, exit 1 or 2, never a crash."""
    program.does(*kitchen.stock())
    rewrite(kitchen, **changes)
    outcome = program("verify", kitchen.out, "--recompute", "1")
    assert outcome.code in (1, 2)
    check_error(outcome, outcome.code, [])


def test_input_that_changed(program: Program, kitchen: Kitchen) -> None:
    """--recompute from inputs that are not those of the merge says which; without it the output is whole."""
    program.does(*kitchen.stock())
    save(kitchen.tensors(3) | {"more": numbers(2)}, kitchen.b)
    program.does("verify", kitchen.out)
    outcome = program("verify", kitchen.out, "--recompute", "1")
    check_error(outcome, 1, [str(kitchen.b)])


def test_input_that_is_gone(program: Program, kitchen: Kitchen) -> None:
    """--recompute from an input that is gone: exit 2, and its name."""
    program.does(*kitchen.stock())
    (kitchen.b / "model.safetensors").unlink()
    check_error(program("verify", kitchen.out, "--recompute", "1"), 2, [str(kitchen.b)])


def test_recompute_finds_what_digests_cannot(program: Program, kitchen: Kitchen) -> None:
    """An output whose weights and provenance were changed alike is caught by --recompute."""
    import xxhash

    program.does(*kitchen.stock())
    file = kitchen.out / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    record = json.loads((kitchen.out / "stockpot.json").read_text())
    from stockpot.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(kitchen.out)
    for name, info in checkpoint.tensors.items():
        data = bytes(content[info.offset : info.offset + info.nbytes])
        record["tensors"][name]["xxh3"] = xxhash.xxh3_128_hexdigest(data)
    rewrite(kitchen, tensors=record["tensors"])
    program.does("verify", kitchen.out)
    check_error(program("verify", kitchen.out, "--recompute", "1"), 1, ["tensor norm.weight"])


def test_pipe_in_place_of_a_file(program: Program, kitchen: Kitchen) -> None:
    """A named pipe where a side file was is damage, not something to wait for."""
    program.does(*kitchen.stock())
    (kitchen.out / "README.md").unlink()
    os.mkfifo(kitchen.out / "README.md")
    assert_damage(program, kitchen.out, "README.md")
