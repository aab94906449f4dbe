"""``stockpot merge --last K RUN``: the last checkpoints of a run, in one command."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from tests.cli._kitchen import Program

Save = Callable[[Path, torch.Tensor], None]


def huggingface(place: Path, weights: torch.Tensor) -> None:
    """``checkpoint-N`` as a Trainer writes it."""
    place.mkdir(parents=True)
    safetensors.torch.save_file({"w": weights}, place / "model.safetensors", {"format": "pt"})
    (place / "config.json").write_text("{}")
    torch.save({"state": {}}, place / "optimizer.pt")


def distributed(place: Path, weights: torch.Tensor) -> None:
    """A folder of ``torch.distributed.checkpoint`` with an optimizer in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": {"w": weights}, "optim": {"m": torch.ones(3)}}, checkpoint_id=str(place))


def lightning(place: Path, weights: torch.Tensor) -> None:
    """``epoch=E-step=S.ckpt``."""
    place.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": {"w": weights}, "optimizer_states": [], "epoch": 1}, place)


RUNS: dict[str, tuple[Save, str]] = {
    "huggingface": (huggingface, "checkpoint-{}"),
    "torchtitan": (distributed, "step-{}"),
    "lightning": (lightning, "epoch={0}-step={0}.ckpt"),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_mean_of_the_last_three(name: str, program: Program, tmp_path: Path) -> None:
    """Of checkpoints at 5, 50, 500 and 1000 the last three by number, not by letter, are averaged and recorded."""
    save, form = RUNS[name]
    run = tmp_path / "run"
    for step in (5, 50, 500, 1000):
        save(run / form.format(step), torch.full((4,), float(step)))
    (run / "notes-7.txt").write_text("not one of them")
    done = program("merge", "--method", "linear", str(run), "--last", "3", "--out", str(tmp_path / "out"))
    assert done.code == 0, done.err
    found = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["w"], torch.full((4,), (50 + 500 + 1000) / 3))
    record = json.loads((tmp_path / "out" / "stockpot.json").read_text())
    assert [Path(one["ref"]).name for one in record["inputs"]] == [form.format(step) for step in (50, 500, 1000)]


def test_the_last_of_two_runs(program: Program, tmp_path: Path) -> None:
    """Several runs give their last ones each, in order."""
    for run, value in (("a", 1.0), ("b", 3.0)):
        for step in (1, 2):
            huggingface(tmp_path / run / f"checkpoint-{step}", torch.full((2,), value * step))
    done = program(
        "merge", "--method", "linear", str(tmp_path / "a"), str(tmp_path / "b"), "--last", "1", "--out",
        str(tmp_path / "out"),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert torch.equal(safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")["w"], torch.full((2,), 4.0))


def test_what_is_no_run(program: Program, tmp_path: Path) -> None:
    """Too few, none, more than one series, a recipe: each is told in one line."""
    run = tmp_path / "run"
    huggingface(run / "checkpoint-1", torch.ones(2))
    out = ("--out", str(tmp_path / "out"))
    told = program("merge", "--method", "linear", str(run), "--last", "2", *out)
    assert told.code == 2
    assert f"the run has too few checkpoints; file {run}; expected 2, got 1" in told.first
    told = program("merge", "--method", "linear", str(tmp_path / "none"), "--last", "2", *out)
    assert told.code == 2
    assert "no such folder of a run" in told.first
    for step in (1, 2):
        huggingface(run / f"other-{step}", torch.ones(2))
        huggingface(run / f"third-{step}", torch.ones(2))
    told = program("merge", "--method", "linear", str(run), "--last", "2", *out)
    assert told.code == 2
    assert "got other-#, third-#" in told.first
    told = program("merge", "--method", "linear", str(run), "--last", "0", *out)
    assert told.code == 2
    told = program("merge", str(tmp_path / "r.yaml"), "--last", "2", *out)
    assert "--last does not go with a recipe" in told.first
    assert not (tmp_path / "out").exists()
