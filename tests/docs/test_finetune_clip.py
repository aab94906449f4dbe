"""examples/finetune_clip.py: a few steps on a tiny CLIP and generated images, alone, in turn, and on two ranks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.lab import _clip_zoo as zoo

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "finetune_clip.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
COLOURS = {"n01": (220, 30, 30), "n02": (30, 220, 30), "n03": (30, 30, 220)}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP, class folders, names."""
    root = tmp_path_factory.mktemp("finetune")
    zoo.save_clip(root / "clip")
    for name, (red, green, blue) in COLOURS.items():
        (root / "train" / name).mkdir(parents=True)
        for number in range(16):
            colour = (red + number, green + 2 * number, blue - number)
            Image.new("RGB", (48, 40), colour).save(root / "train" / name / f"{number}.JPEG")
    (root / "names.txt").write_text("one\ntwo\nthree\n")
    return root


def losses(place: Path, out: str, *more: str, launcher: tuple[str, ...] = ()) -> tuple[list[float], str]:
    """Losses of the epochs, in the order of the output, and the output."""
    words = ["--model", "clip", "--data", "train", "--classnames", "names.txt", "--batch", "16", "--workers", "0",
             "--warm-up", "2", "--rate", "1e-3", "--device", "cpu", "--out", out, *more]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), *words], cwd=place, env=ENVIRONMENT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(own) for own in re.findall(r"loss ([\d.]+)", done.stdout)], done.stdout


def check(place: Path, out: str) -> dict[str, torch.Tensor]:
    """The text tower is the base's, and everything that was trained has moved."""
    base, found = load_file(place / "clip" / "model.safetensors"), load_file(place / out / "model.safetensors")
    assert set(found) == {*base, "classification_head.weight", "classification_head.bias"}
    for name, own in base.items():
        if name.endswith("k_proj.bias"):
            continue  # softmax does not see it: its gradient is rounding, and a merge of that is the base
        assert torch.equal(own, found[name]) == (name.startswith("text_") or name == "logit_scale"), name
    return found


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_alone(precision: str, place: Path) -> None:
    """It learns, in mixed precision too; weights are float32."""
    found, _ = losses(place, precision, "--epochs", "4", "--precision", precision)
    assert len(found) == 4
    assert found[-1] < 0.5 * found[0]
    assert {own.dtype for own in check(place, precision).values()} == {torch.float32}


def test_in_turn(place: Path) -> None:
    """Two replicas with data of their own, merged after each epoch."""
    found, said = losses(place, "turn", "--epochs", "2", "--replicas", "2")
    assert said.count("merge after epoch") == 2
    assert [line[:18] for line in said.splitlines() if line.startswith("replica")] == [
        "replica 0, epoch 1", "replica 1, epoch 1", "replica 0, epoch 2", "replica 1, epoch 2",
    ]  # fmt: skip
    assert found[-1] < found[0]
    check(place, "turn")


@pytest.mark.parametrize("replicas", ["1", "ranks"])
def test_on_two_ranks(replicas: str, place: Path) -> None:
    """One run whose batch is shared, or a run each, merged."""
    found, said = losses(place, f"on-{replicas}", "--epochs", "2", "--replicas", replicas, launcher=TORCHRUN)
    assert len(found) == 4
    assert said.count("merge after epoch") == (4 if replicas == "ranks" else 0)
    check(place, f"on-{replicas}")


def test_the_defaults_are_the_papers() -> None:
    """AdamW at 3e-5, decay .1, 500 steps of warm-up, gradients clipped at 1, 512 images a batch, 10 epochs."""
    text = SCRIPT.read_text("utf-8")
    for option, value in {
        "rate": "3e-5",
        "decay": "0.1",
        "warm-up": "500",
        "clip": "1.0",
        "batch": "512",
        "epochs": "10",
    }.items():
        assert re.search(rf'"--{option}", type=\w+, default={re.escape(value)}[,)]', text), option
