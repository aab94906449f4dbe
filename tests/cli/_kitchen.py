"""What the tests of the command line share: tiny checkpoints, and the program with what every refusal must keep."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from stockpot.cli import main

PREFIX = "stockpot: error: "
SHOWN = 10
Tensors = Mapping[str, torch.Tensor]


def snapshot(folder: Path) -> dict[str, object]:
    """Every path under a folder with its content."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder)).encode("utf-8", "backslashreplace").decode()
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[name] = f"link to {path.readlink()}"
        elif stat.S_ISDIR(mode):
            found[name] = "folder"
        elif stat.S_ISREG(mode):
            found[name] = path.read_bytes()
        else:
            found[name] = "other"
    return found


@dataclass(frozen=True)
class Outcome:
    """What a call printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def first(self) -> str:
        """The first line of the error, without ``stockpot: error:``."""
        lines = [line for line in self.err.splitlines() if not line.startswith("stockpot: warning: ")]
        assert lines, "nothing on stderr"
        assert lines[0].startswith(PREFIX), lines[0]
        return lines[0].removeprefix(PREFIX)

    @property
    def problems(self) -> list[str]:
        """The lines after the first."""
        lines = self.err.splitlines()
        return lines[next(n for n, line in enumerate(lines) if line.startswith(PREFIX)) + 1 :]

    @property
    def data(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        assert self.out.count("\n") == 1
        assert self.out.endswith("\n")
        return found


class Program:
    """The command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], workspace: Path) -> None:
        self.capsys = capsys
        self.workspace = workspace

    def __call__(self, *arguments: object) -> Outcome:
        """Run it."""
        self.capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = self.capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    def does(self, *arguments: object) -> Outcome:
        """Run it; it must succeed."""
        outcome = self(*arguments)
        assert outcome.code == 0, outcome.err
        return outcome

    def refuses(self, *arguments: object, kind: str, says: Sequence[str] = (), command: str = "merge") -> Outcome:
        """Run it, plain and with ``--json``: exit 2, a first line that says these words, and nothing written.

        Everything under the workspace must be byte for byte what it was, inputs included.
        """
        before = snapshot(self.workspace)
        outcome = self(*arguments)
        check_error(outcome, 2, says)
        assert outcome.out == ""
        assert snapshot(self.workspace) == before
        again = self(*arguments, "--json")
        assert snapshot(self.workspace) == before
        assert again.err == outcome.err
        check_object(again, kind, command)
        return outcome

    def fails(self, *arguments: object, kind: str, says: Sequence[str] = (), command: str = "merge") -> Outcome:
        """Run it with ``--json``: exit 1, a first line that says these words, one JSON object."""
        outcome = self(*arguments, "--json")
        check_error(outcome, 1, says)
        check_object(outcome, kind, command)
        return outcome


def check_error(outcome: Outcome, code: int, says: Sequence[str]) -> None:
    """The law of errors on stderr."""
    assert outcome.code == code, (outcome.code, outcome.err)
    first = outcome.first
    for words in says:
        assert words in first, (words, first)
    assert "unexpected:" not in first
    assert "Traceback" not in outcome.err
    assert first.isprintable(), "control characters in the first line"
    problems = outcome.problems
    assert len(problems) <= SHOWN + 1
    assert all(line.startswith("  ") for line in problems)
    assert all(line.isprintable() for line in problems)
    if len(problems) > SHOWN:
        assert problems[-1].startswith("  and ")
        assert problems[-1].endswith(" more")


def check_object(outcome: Outcome, kind: str, command: str) -> None:
    """The law of errors on stdout, with ``--json``."""
    data = outcome.data
    assert (data["status"], data["command"]) == ("error", command)
    assert isinstance(data["stockpot"], str)
    assert isinstance(data["warnings"], list)
    error = data["error"]
    assert set(error) >= {"kind", "message", "tensor", "file", "expected", "got", "remedy", "problems"}
    assert error["kind"] == kind, (error["kind"], error["message"])
    assert error["message"] == outcome.first
    for part in ("tensor", "file", "expected", "got", "remedy"):
        # As data a name stays as it is; in the message what cannot be printed is escaped.
        value = error[part]
        assert value is None or not value.isprintable() or " ".join(value.split()) in error["message"]
    listed = [line.strip() for line in outcome.problems[:SHOWN]]
    assert len(error["problems"][:SHOWN]) == len(listed)
    for problem, line in zip(error["problems"], listed, strict=False):
        assert not problem.isprintable() or " ".join(problem.split()) == line


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Seeded normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def save(tensors: Tensors, path: Path, metadata: dict[str, str] | None = None) -> Path:
    """A ``.safetensors`` file, or a folder with ``model.safetensors``."""
    file = path if path.suffix == ".safetensors" else path / "model.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    return path


def load(path: Path) -> dict[str, torch.Tensor]:
    """All weights of an output, by the format's own library."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    found: dict[str, torch.Tensor] = {}
    for file in files:
        if file.name != "stockpot_geometry.safetensors":
            found.update(safetensors.torch.load_file(file))
    return found


def save_shards(shards: Sequence[Tensors], folder: Path) -> Path:
    """A sharded checkpoint with its index."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        safetensors.torch.save_file(dict(tensors), folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    """The index of a sharded checkpoint."""
    content = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


@dataclass(frozen=True)
class Kitchen:
    """A base and two fine-tunes that agree, as folders; where the output goes."""

    root: Path
    base: Path
    a: Path
    b: Path
    out: Path

    @classmethod
    def create(cls, root: Path) -> Kitchen:
        """Three tensors: two layers and a norm; a config and a tokenizer beside."""
        made = cls(root, root / "base", root / "a", root / "b", root / "out")
        for number, folder in enumerate((made.base, made.a, made.b)):
            save(cls.tensors(number), folder, {"format": "pt"})
            (folder / "config.json").write_text('{"model_type": "tiny", "dtype": "float32"}')
            (folder / "tokenizer.json").write_text(f'{{"of": {min(number, 1)}}}')
        return made

    @staticmethod
    def tensors(number: int) -> dict[str, torch.Tensor]:
        """The base (0), or a fine-tune: the base, a step that all share, a step of its own."""
        found = {}
        for place, (name, shape) in enumerate(
            {"layers.0.weight": (4, 3), "layers.1.weight": (5, 4), "norm.weight": (4,)}.items()
        ):
            found[name] = numbers(*shape, seed=place)
            if number:
                found[name] += 0.1 * numbers(*shape, seed=10 + place) + 0.05 * numbers(
                    *shape, seed=100 * number + place
                )
        return found

    def stock(self, *more: object, out: Path | None = None) -> list[object]:
        """Arguments of a Model Stock merge."""
        head = ["merge", "--method", "model_stock", "--base", self.base, self.a, self.b]
        return [*head, "--out", out or self.out, *more]

    def soup(self, *more: object, out: Path | None = None) -> list[object]:
        """Arguments of a uniform soup."""
        return ["merge", "--method", "linear", self.a, self.b, "--out", out or self.out, *more]

    def change(self, folder: Path, **changed: torch.Tensor | None) -> None:
        """Save a model's tensors again with some changed, added or (None) left out; ``__`` in a name is a dot."""
        tensors: dict[str, torch.Tensor] = safetensors.torch.load_file(folder / "model.safetensors")
        for name, tensor in changed.items():
            name = name.replace("__", ".")
            if tensor is None:
                del tensors[name]
            else:
                tensors[name] = tensor
        save(tensors, folder, {"format": "pt"})

    def everywhere(self, **changed: torch.Tensor) -> None:
        """``change`` the base and both models alike."""
        for folder in (self.base, self.a, self.b):
            self.change(folder, **changed)


def sharded(kitchen: Kitchen) -> tuple[Path, dict[str, str]]:
    """``a`` in two shards, and its index."""
    tensors = kitchen.tensors(1)
    names = list(tensors)
    (kitchen.a / "model.safetensors").unlink()
    save_shards([{name: tensors[name]} for name in names[:2]] + [{names[2]: tensors[names[2]]}], kitchen.a)
    shards = sorted(path.name for path in kitchen.a.glob("*.safetensors"))
    return kitchen.a, dict(zip(names, shards, strict=True))
