"""Three replicas that save after each step; one may be killed in its second merge, and all be started again."""

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from tests.train import _runs as runs
from tests.train._ranks import leave

from stockpot.train import PeriodicStock, Schedule, SideBySide
from stockpot.train._exchange import Exchange


def main(folder, what):
    """``go``, ``kill`` or ``resume``."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    rank = dist.get_rank()
    model = runs.made("plain")
    optimizer = runs.OPTIMIZERS["adamw"](model)
    stock = PeriodicStock(SideBySide(model, optimizer), Schedule(2, "step", until=8))
    saved = Path(folder) / f"saved{rank}.pt"
    if what == "resume":
        for one, state in zip((model, optimizer, stock), torch.load(saved, weights_only=True), strict=True):
            one.load_state_dict(state)
    exchanged, slices = [], Exchange.slices

    def slices_or_death(self, tensors, cuts):
        exchanged.append(1)
        if what == "kill" and rank == 2 and len(exchanged) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return slices(self, tensors, cuts)

    Exchange.slices = slices_or_death
    while not stock.is_finished:
        torch.save([one.state_dict() for one in (model, optimizer, stock)], saved)
        runs.train_step(model, optimizer, rank, stock.steps)
        stock.step()
    torch.save(model.state_dict(), Path(folder) / f"rank{rank}.pt")
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
