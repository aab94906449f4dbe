"""A merge of files on the CPU starts quickly: torch is not loaded."""

import subprocess
import sys

import pytest
import safetensors.torch
from tests.oracles.data import fine_tunes

from stockpot.kernels import _native

CODE = """
import sys
from stockpot.cli import main
code = main(sys.argv[1:])
print(code, sorted(name for name in ("torch", "scipy", "sklearn") if name in sys.modules))
"""


@pytest.mark.skipif(_native.library() is None, reason="without the C program torch does the arithmetic")
@pytest.mark.parametrize("granularity", ["tensor", "row", "block"])
def test_merge_and_verify(tmp_path, granularity):
    """Neither merging nor verifying needs it."""
    base, models = fine_tunes(2, 30, 40, seed=1)
    for name, tensor in zip(("base", "a", "b"), (base, *models), strict=True):
        (tmp_path / name).mkdir()
        safetensors.torch.save_file({"layer.0.weight": tensor}, tmp_path / name / "model.safetensors")
    merge = ["merge", "--method", "model_stock", "--base", "base", "a", "b", "--out", "out", "--quiet"]
    for arguments in ([*merge, "--granularity", granularity], ["verify", "out", "--recompute", "1"]):
        run = subprocess.run(
            [sys.executable, "-c", CODE, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert run.stdout.splitlines()[-1] == "0 []", run.stderr
