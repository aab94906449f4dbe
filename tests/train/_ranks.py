"""Processes of one job, as ``torchrun`` starts them; each writes what it found into a folder."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def launch(program, ranks, folder, *words, timeout=240):
    """Run ``tests/train/PROGRAM.py FOLDER WORDS...`` on that many ranks; returns (exit code, all output)."""
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
            "-m", f"tests.train.{program}", str(folder), *map(str, words),
        ],
        capture_output=True, text=True, timeout=timeout, cwd=HERE.parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr
