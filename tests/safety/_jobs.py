"""Merges to be disturbed: small, with all that an output can hold; each with what an undisturbed run makes of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.engine._checkpoints import contents, folder

import stockpot
from stockpot import engine

LAYERS, ROWS, COLUMNS = 12, 60, 110
HIDDEN = (".stockpot-journal", ".stockpot-lock")
"""What may still lie in an OUT that was cut off after its rename."""
OFTEN = """
import sys
from stockpot.checkpoint import _staging
_staging.SYNC_SECONDS = 0.003
from stockpot.__main__ import program
sys.exit(program())
"""
"""``stockpot``, but it journals what is finished every few milliseconds: a small merge is over in a few hundred."""


def write_inputs(root: Path) -> list[Path]:
    """A base and two fine-tunes, each of two shards, with side files, one of them in a subfolder."""
    return [_model(root / name, number) for number, name in enumerate(("base", "one", "two"))]


def _model(path: Path, number: int) -> Path:
    state: dict[str, torch.Tensor] = {}
    for layer in range(LAYERS):
        value = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(layer))
        if number:
            value += 0.1 * torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(100 * number + layer))
        state[f"layers.{layer:02d}.weight"] = value
    names = sorted(state)
    half = LAYERS // 2
    folder(path, {name: state[name] for name in names[:half]}, {name: state[name] for name in names[half:]})
    (path / "tokenizer.json").write_text('{"a": 1}' * 1000)
    (path / "extra").mkdir()
    (path / "extra" / "notes.txt").write_text("x" * 5000)
    return path


@dataclass(frozen=True)
class Job:
    """One merge into ``name`` in a folder; ``before`` makes what lies in that folder already.

    ``options`` of the command line: ``--overwrite``, ``--no-resume``.
    """

    inputs: Sequence[Path]
    name: str
    options: tuple[str, ...] = ()
    before: Callable[[Job, Path], None] = lambda job, place: None
    shard_size: str | None = None
    where: str = ""
    """Folders between that folder and OUT, which the merge must make."""

    def out(self, place: Path) -> Path:
        """OUT in this folder."""
        return place / self.where / self.name

    def command(self, place: Path, *more: str, often: bool = False) -> list[str]:
        """The command line."""
        program = ["-c", OFTEN] if often else ["-m", "stockpot"]
        base, *models = map(str, self.inputs)
        inputs = ["--method", "model_stock", "--base", base, *models]
        sized = ["--shard-size", self.shard_size] if self.shard_size else []
        return [sys.executable, *program, "merge", *inputs, "--out", str(self.out(place)), *sized, *self.options, *more]

    @property
    def replaces(self) -> bool:
        """Whether an old OUT is replaced."""
        return "--overwrite" in self.options

    def merge(self, place: Path, *, overwrite: bool = False) -> engine.MergeResult:
        """The same in this process."""
        base, *models = self.inputs
        return stockpot.merge(
            "model_stock",
            base=str(base),
            models=[str(model) for model in models],
            out=self.out(place),
            shard_size=self.shard_size,
            overwrite=overwrite or self.replaces,
            resume="--no-resume" not in self.options,
        )

    def state(self, place: Path, expected: Mapping[str, bytes], old: Mapping[str, bytes] | None = None) -> str:
        """What OUT is: absent, old, put aside (the old one, as OUT.old), whole; anything else fails."""
        out = self.out(place)
        if not out.exists():
            aside = out.with_name(out.name + ".old")
            return "aside" if old is not None and aside.is_dir() and made_of(aside) == old else "absent"
        found = {name: digest for name, digest in made_of(out).items() if name not in HIDDEN}
        if found == old:
            return "old"
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        assert not wrong, f"OUT is half: {wrong}"
        assert stockpot.verify(out).problems == ()
        return "whole"

    def check_finished(self, place: Path, expected: Mapping[str, bytes]) -> None:
        """OUT is what an undisturbed run makes, and nothing lies beside it."""
        assert self.state(place, expected) == "whole"
        out = self.out(place)
        assert not [name for name in HIDDEN if out.is_dir() and (out / name).exists()]
        assert sorted(entry.name for entry in out.parent.iterdir()) == [out.name]


def made_of(out: Path) -> dict[str, bytes]:
    """Digest of every file of an output, without what tells of the run."""
    if out.is_file():
        return {out.name: contents(out.parent)[out.name]}
    return contents(out)


def old_output(job: Job, place: Path) -> None:
    """An OUT of another merge of ours."""
    parts = [place / f"{number}.safetensors" for number in range(2)]
    for number, part in enumerate(parts):
        save_file({"w": torch.full((3,), float(number))}, part)
    stockpot.merge("linear", models=parts, out=job.out(place))
    if job.out(place).is_dir():
        (job.out(place) / "kept-by-the-user.txt").write_text("an old file that is in no new output")
    for part in parts:
        part.unlink()


def others_partial(job: Job, place: Path) -> None:
    """Another job's unfinished output, with more files than ours."""
    _cut_off(job, place, shard_size="60kB")


def own_partial(job: Job, place: Path) -> None:
    """The job's own unfinished output, with everything in it but the last files."""
    _cut_off(job, place)


def own_partial_without_weights(job: Job, place: Path) -> None:
    """The same, of which a file of weights was lost, so that nothing of it counts."""
    own_partial(job, place)
    (job.out(place).with_name(job.name + ".partial") / "model-00002-of-00002.safetensors").unlink()


def _cut_off(job: Job, place: Path, shard_size: str | None = None) -> None:
    base, *models = map(str, job.inputs)

    def cut(*_: object, **__: object) -> None:
        raise OSError(5, "cut off")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stockpot.engine._merge._finish", cut)
        with pytest.raises(OSError, match="cut off"):
            stockpot.merge("model_stock", base=base, models=models, out=job.out(place), shard_size=shard_size)


@contextlib.contextmanager
def without_syncing() -> Iterator[None]:
    """Nothing waits for the disk meanwhile: no power is lost while what was left is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        for sync in ("fsync", "fdatasync"):
            patch.setattr(os, sync, lambda _: None)
        yield


def undisturbed(job: Job, place: Path) -> dict[str, bytes]:
    """What the job makes in an empty folder."""
    place.mkdir(parents=True)
    job.merge(place)
    found = made_of(job.out(place))
    shutil.rmtree(place)
    return found
