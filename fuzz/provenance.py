"""Outputs: what ``verify`` reads of them, the provenance and the sums."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import atheris

import stockpot
from fuzz import _json
from fuzz._target import Run, Target
from stockpot.checkpoint import _header
from stockpot.engine import _verify

_WEIGHTS = [("a", "F32", (2, 3)), ("b", "F32", (2,))]
PROVENANCE, SUMS = "stockpot.json", "SHA256SUMS"
_DIVIDER = b"\n\0\n"
"""Between the provenance and the sums of one input."""
VALUES = (
    *_json.VALUES,
    "model.safetensors",
    "../model.safetensors",
    "/dev/zero",
    "x" * 5000,
    "pipe",
    "a\0",
    "config.json",
)


def _merged(folder: Path) -> Path:
    """A small output of ours."""
    for name in "xy":
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(_header.build(_WEIGHTS, {}) + bytes(32))
        (folder / name / "config.json").write_text("{}")
    stockpot.merge("linear", models=[folder / "x", folder / "y"], out=folder / "out")
    return folder / "out"


def _prepare(folder: Path) -> Run:
    out = _merged(folder)
    os.mkfifo(out / "pipe")
    stated, sums = (os.open(out / name, os.O_RDWR) for name in (PROVENANCE, SUMS))

    def run(data: bytes) -> None:
        first, _, second = data.partition(_DIVIDER)
        for descriptor, content in ((stated, first), (sums, second)):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
        _verify.verify(out)

    return run


def _seeds() -> list[bytes]:
    with TemporaryDirectory() as name:
        out = _merged(Path(name))
        stated, sums = ((out / each).read_bytes() for each in (PROVENANCE, SUMS))
    return [stated + _DIVIDER + sums, stated + _DIVIDER, _DIVIDER + sums]


def _mutate(data: bytes, most: int, random: Random) -> bytes:
    first, divider, second = data.partition(_DIVIDER)
    chance = random.random()
    if chance < 0.6 and (changed := _json.mutate_json(first, random, VALUES)) is not None:
        return changed + divider + second
    if chance < 0.85:
        lines = second.split(b"\n")
        line = lines[random.randrange(len(lines))]
        name = str(random.choice(VALUES)).encode("utf-8", "replace")
        lines.append(line.partition(b"  ")[0] + b"  " + name)
        return first + divider + b"\n".join(lines)
    return bytes(atheris.Mutate(data, most))


TARGET = Target("provenance", _prepare, _seeds, (_verify,), _mutate, max_bytes=8192)
