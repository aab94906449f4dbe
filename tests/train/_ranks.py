"""Processes of one job, as ``torchrun`` starts them; each writes what it found into a folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch.distributed as dist

HERE = Path(__file__).parent


def leave():
    """End a rank that has done its work, at once.

    Torch's destructors of a Gloo group may deadlock with the group's own threads over the interpreter's lock (the one
    waits for the other's end and holds what it needs), so they are not run.
    """
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


def launch(program, ranks, folder, *words, timeout=240, package="tests.train"):
    """Run ``PROGRAM.py FOLDER WORDS...`` of a package on that many ranks; returns (exit code, all output).

    A job that hangs is made to say where (faulthandler), and nothing of it is left behind.
    """
    job = subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
            "-m", f"{package}.{program}", str(folder), *map(str, words),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=HERE.parents[1], start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONFAULTHANDLER": "1"},
    )  # fmt: skip
    try:
        output, _ = job.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        subprocess.run(["pkill", "-ABRT", "-f", f"{package}.{program} {folder}"], check=False)
        time.sleep(5)
        os.killpg(job.pid, signal.SIGKILL)
        output, _ = job.communicate()
        raise AssertionError(f"{program} hung:\n{output}") from None
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    return job.returncode, output
