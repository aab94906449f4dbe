"""The examples beside the training page's: they run as their first lines say, and end with a model that has learned."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def ran(folder, *words):
    """All that an example prints."""
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=folder, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def per_cent(output):
    """Every share of right answers that was printed."""
    return [float(own) for own in re.findall(r"(\d\d\.\d\d) per cent", output)]


CASES = {
    "hf_trainer.py": (
        ["--epochs", "3"],
        ["--epochs", "4", "--resume"],
        ["--replicas", "2", "--epochs", "3", "--out", "b"],
    ),
    "lightning_trainer.py": (["--epochs", "3"], ["--replicas", "2", "--epochs", "4", "--out", "b"]),
    "accelerate_loop.py": ([], ["--resume"], ["--replicas", "3", "--out", "b"]),
}


@pytest.mark.parametrize("name", CASES)
def test_an_example(name, tmp_path):
    """One average, replicas in turn, and going on where it can."""
    for words in CASES[name]:
        output = ran(tmp_path, EXAMPLES / name, *words)
        shares = per_cent(output)
        assert min(shares) > 30, output
        assert ("merge " in output) == ("--replicas" in words)
        assert "UserWarning: training ended" not in output


@pytest.mark.parametrize("name", [pytest.param("hf_trainer.py", marks=pytest.mark.slow), "accelerate_loop.py"])
def test_an_example_under_torchrun(name, tmp_path):
    """Replicas on ranks that end as one; an average of one model on two ranks."""
    again = ["--epochs", "9", "--resume"] if name == "hf_trainer.py" else ["--resume"]
    words = ["--replicas", "ranks", "--epochs", "8"] if name == "hf_trainer.py" else []
    for own in (words, [*words, *again]):
        output = ran(
            tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", EXAMPLES / name, *own
        )
        shares = per_cent(output)
        assert len(shares) == 2, output
        assert min(shares) > 30
        if name == "hf_trainer.py":
            one, two = (load_file(tmp_path / "hf-trainer" / f"final-{rank}" / "model.safetensors") for rank in (0, 1))
            assert all(one[key].equal(two[key]) for key in one)
            assert output.count("merge after epoch 9") == (2 if "--resume" in own else 0)


def test_every_example_is_run():
    """None is forgotten."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*CASES, "periodic_model_stock.py", "finetune_clip.py"}
