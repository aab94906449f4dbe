"""Averages on each rank of a job: of replicated weights (DDP) or of shards (FSDP2)."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tests.train import _runs as runs
from tests.train._ranks import leave
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from stockpot.train import EMA, LAWA, SWA

AVERAGES = {"ema": lambda model: EMA(model, decay=0.9), "swa": SWA, "lawa": lambda model: LAWA(model, last=3)}


def full(model):
    """Whole weights, on every rank."""
    named = model.module.state_dict() if isinstance(model, DistributedDataParallel) else model.state_dict()
    return {
        name: (own.full_tensor() if isinstance(own, DTensor) else own).detach().clone() for name, own in named.items()
    }


def main(folder, kind, name):
    """Train, average, swap; rank 0 saves what one process can compare."""
    dist.init_process_group("gloo")
    model = runs.made("plain")
    if kind == "ddp":
        model = DistributedDataParallel(model)
    else:
        fully_shard(model)
    optimizer = runs.OPTIMIZERS["adamw"](model)
    average, seen = AVERAGES[name](model), []
    for step in range(5):
        runs.train_step(model, optimizer, 1, step)
        average.update()
        seen.append(full(model))
    try:
        with average.swap():
            inside = full(model)
            raise KeyError("evaluation failed")
    except KeyError:
        after = full(model)
    shards = [own.to_local().numel() for own in model.parameters() if isinstance(own, DTensor)]
    torch.save((seen, inside, after, shards), Path(folder) / f"rank{dist.get_rank()}.pt")
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
