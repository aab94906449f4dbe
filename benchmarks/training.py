"""`python -m benchmarks.training`: what a merge costs while training, in turn and side by side.

A vision transformer of 100 M parameters in float32, by transformers; two replicas (and three in turn). A merge, record
included, against plainly copying all replicas once (``tensor.clone()`` of every tensor), and against copying them into
memory that is there and touched already, which is what the memory's bandwidth allows; side by side
(gloo over loopback) against one all-reduce of the model, too; its peak of memory above what the process held, against
one model; and a training step of one image, to say how long an epoch must be for a merge to cost less than 1 %. Results
go to ``benchmarks/results/training/training.json``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import report

ROOT = Path(__file__).parents[1]
OUT = Path(__file__).with_name("results") / "training" / "training.json"
COPIES = 3.0
"""Of all replicas: a merge takes no longer."""
REPEATS = 5


def model() -> Any:
    """The transformer, the same each time."""
    import torch
    import transformers

    torch.manual_seed(0)
    return transformers.ViTForImageClassification(transformers.ViTConfig(num_hidden_layers=14))


def moved(weights: Any, seed: int) -> None:
    """As if trained."""
    import torch

    drawn = torch.Generator().manual_seed(seed)
    for tensor in weights.values():
        if tensor.is_floating_point():
            tensor += 0.002 * torch.randn(tensor.shape, generator=drawn)


def copy_seconds(weights: Any, replicas: int, *, touched: bool) -> float:
    """Seconds to copy that many models once: plainly, or into memory that is there."""
    from stockpot.train._weights import copied

    kept, rounds = copied(weights), []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        for _ in range(replicas):
            if touched:
                copied(weights, kept)
            else:
                plain = {name: tensor.clone() for name, tensor in weights.items()}
                del plain
        rounds.append(time.perf_counter() - begun)
    return statistics.median(rounds)


def peak_during(work: Any) -> tuple[float, int]:
    """(seconds, bytes above what was resident before)."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun, _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def merges(own: Any, stock: Any) -> tuple[list[float], int]:
    """Seconds of each merge but the first, and the greatest peak above what was held."""
    from stockpot.train._weights import trained

    seconds, peaks = [], []
    for number in range(REPEATS + 1):
        for _ in range(stock.replicas.count):
            moved(trained(own), 10 * number + stock.replica)
            if stock.replicas.next():
                break
        took, peak = peak_during(stock.merge)
        if number:  # the first allocates the merged model
            seconds.append(took)
            peaks.append(peak)
    return seconds, max(peaks)


def in_turn(replicas: int) -> dict[str, Any]:
    """One process."""
    from stockpot.train import InTurn, PeriodicStock, Schedule

    own = model()
    stock = PeriodicStock(InTurn(own, count=replicas), Schedule(1))
    seconds, peak = merges(own, stock)
    return result("in turn", replicas, own, seconds, peak)


def side_by_side() -> dict[str, Any]:
    """This rank of two."""
    import torch.distributed as dist

    from stockpot.train import PeriodicStock, Schedule, SideBySide

    dist.init_process_group("gloo")
    own = model()
    stock = PeriodicStock(SideBySide(own), Schedule(1))
    seconds, peak = merges(own, stock)
    reduced = all_reduce_seconds(sum(tensor.numel() for tensor in own.state_dict().values()))
    found = result("side by side", 2, own, seconds, peak) if dist.get_rank() == 0 else {}
    if found:
        found |= {"all_reduce_seconds": reduced, "limit": None}
    dist.barrier()
    dist.destroy_process_group()
    return found


def all_reduce_seconds(elements: int) -> float:
    """Of that many floats, over all ranks."""
    import torch
    import torch.distributed as dist

    values, rounds = torch.zeros(elements), []
    for _ in range(REPEATS):
        dist.barrier()
        begun = time.perf_counter()
        dist.all_reduce(values)
        rounds.append(time.perf_counter() - begun)
    return statistics.median(rounds)


def result(how: str, replicas: int, own: Any, seconds: list[float], peak: int) -> dict[str, Any]:
    """As it is stored."""
    from stockpot.train._weights import trained

    weights = trained(own)
    copied = copy_seconds(weights, replicas, touched=False)
    touched = copy_seconds(weights, replicas, touched=True)
    return {
        "how": how,
        "replicas": replicas,
        "model_bytes": sum(tensor.nbytes for tensor in weights.values()),
        "merge_seconds": seconds,
        "copy_seconds": copied,
        "ratio_median": statistics.median(seconds) / copied,
        "copy_touched_seconds": touched,
        "ratio_of_touched": statistics.median(seconds) / touched,
        "limit": COPIES,
        "peak_extra_bytes": peak,
    }


def step_seconds() -> float:
    """Of one optimizer step on one image."""
    import torch

    own = model()
    optimizer = torch.optim.AdamW(own.parameters())
    rounds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        own(pixel_values=torch.zeros(1, 3, 224, 224), labels=torch.zeros(1, dtype=torch.long)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        rounds.append(time.perf_counter() - begun)
    return statistics.median(rounds)


def part(name: str) -> None:
    """Measure one thing in this process; rank 0 writes it where PART_OUT says."""
    found: Any = {"turn2": lambda: in_turn(2), "turn3": lambda: in_turn(3), "side": side_by_side, "step": step_seconds}[
        name
    ]()
    if found != {}:
        Path(os.environ["PART_OUT"]).write_text(json.dumps(found))


def measured(name: str) -> Any:
    """One part, in processes of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if name == "side" else []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        environment = {**os.environ, "PART_OUT": str(out), "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, *launcher, "-m", "benchmarks.training", "--part", name]
        subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL, cwd=ROOT)
        return json.loads(out.read_text())


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        part(given.part)
        return 0
    merged = [measured(name) for name in ("turn2", "turn3", "side")]
    step = measured("step")
    stored = {"machine": report.machine(), "merges": merged, "step_seconds": step}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(stored, indent=1) + "\n")
    for one in merged:
        took = statistics.median(one["merge_seconds"])
        if one["limit"] is None:
            kept = f"no limit; {took / one['all_reduce_seconds']:.1f} all-reduces of the model"
        else:
            kept = f"{one['limit']}: {'kept' if one['ratio_median'] <= one['limit'] else 'NOT KEPT'}"
        Console().print(
            f"{one['replicas']} {one['how']}: a merge takes {took:.2f} s, {one['ratio_median']:.2f} copies of all "
            f"({kept}), {one['ratio_of_touched']:.2f} into memory that is touched, "
            f"{took / step:.1f} training steps of one image; "
            f"peak {one['peak_extra_bytes'] / one['model_bytes']:.2f} models more"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
