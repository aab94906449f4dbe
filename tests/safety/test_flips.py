"""``stockpot verify`` against damage: every byte of every kind of output, flipped, cut, removed, added."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import stockpot
from stockpot import errors
from stockpot.checkpoint import open_checkpoint

from ._outputs import OUTPUTS
from .conftest import Campaign

SHORT_FLIPS = 12


def said(out: Path) -> str:
    """Everything that ``verify`` finds; nothing but our own errors may come out of it."""
    try:
        return "\n".join(stockpot.verify(out).problems)
    except errors.StockpotError as error:
        return "\n".join([error.line(), *error.problems])


def files_of(out: Path) -> list[Path]:
    """Every file of an output."""
    return [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())


def tensors_at(out: Path) -> dict[tuple[str, int], str]:
    """Which tensor has a byte, by file and place."""
    source = open_checkpoint(out)
    return {
        (str(source.files[info.file].path), at): name
        for name, info in source.tensors.items()
        for at in range(info.offset, info.offset + info.nbytes)
    }


def chosen(size: int, campaign: Campaign, begin: int) -> Iterator[int]:
    """Every place, or a few of them that move with ``begin``."""
    step = 1 if campaign.is_soak else max(1, size // SHORT_FLIPS)
    return iter(sorted({0, size - 1, *range(begin % step, size, step)}))


@pytest.fixture(scope="module")
def tally() -> dict[str, object]:
    """What was flipped in each kind of output."""
    return {}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_byte_flipped(kind: str, tmp_path: Path, campaign: Campaign, tally: dict[str, object]) -> None:
    """One flipped bit of any byte of any file is found; the file is named, and of weights the tensor."""
    out = OUTPUTS[kind](tmp_path)
    assert said(out) == ""
    tensors = tensors_at(out)
    flips: Counter[str] = Counter()
    for number, file in enumerate(files_of(out)):
        content = file.read_bytes()
        for at in chosen(len(content), campaign, 7 * number):
            damaged = bytearray(content)
            damaged[at] ^= 1 << (at * 7 % 8)
            file.write_bytes(damaged)
            found = said(out)
            assert file.name in found, (file.name, at, found)
            tensor = tensors.get((str(file), at))
            assert tensor is None or f"tensor {tensor} in" in found, (file.name, at, found)
            flips["weights" if tensor else file.name if out.is_dir() else "frame of one file"] += 1
        file.write_bytes(content)
    assert said(out) == ""
    tally[kind] = {"flips": flips.total(), "by_file": dict(sorted(flips.items()))}
    campaign.record("flips", kinds=tally)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_file_cut_longer_gone_or_more(kind: str, tmp_path: Path) -> None:
    """A file that is a byte shorter or longer, empty, gone, a folder, or that nobody wrote, is found and named."""
    out = OUTPUTS[kind](tmp_path)
    for file in files_of(out):
        content = file.read_bytes()
        for damaged in (content[:-1], content + b"\n", content + b"\0", content[: len(content) // 2], b""):
            file.write_bytes(damaged)
            assert file.name in said(out), (file.name, len(damaged))
        file.unlink()
        assert file.name in said(out)
        file.mkdir()
        assert file.name in said(out)
        file.rmdir()
        file.write_bytes(content)
    if out.is_dir():
        folders = {out, *(file.parent for file in files_of(out))}
        strange = ("more.txt", "pytorch_model.bin", "other.safetensors", "model.safetensors.index.json.txt", "code.py")
        for folder in folders:
            for name in strange:
                (folder / name).write_bytes(b"{}")
                assert name in said(out), name
                (folder / name).unlink()
            (folder / "pytorch_model.bin").symlink_to(out / "README.md")
            assert "pytorch_model.bin" in said(out)
            (folder / "pytorch_model.bin").unlink()
    assert said(out) == ""


@pytest.mark.parametrize("kind", ["shards", "parts"])
def test_files_exchanged(kind: str, tmp_path: Path) -> None:
    """Two files of one output in each other's place are found, whatever they are."""
    out = OUTPUTS[kind](tmp_path)
    for one, other in itertools.pairwise(files_of(out)):
        if one.read_bytes() != other.read_bytes():
            exchange(one, other)
            found = said(out)
            assert one.name in found or other.name in found, (one, other, found)
            exchange(one, other)
    assert said(out) == ""


def exchange(one: Path, other: Path) -> None:
    """Each takes the other's name."""
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
