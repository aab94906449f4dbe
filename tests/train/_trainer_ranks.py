"""A program of two ranks: Hugging Face and Lightning Trainers, one on each rank; and how it fails if they are one.

``FOLDER TRAINER apart|together``: writes what each rank ended with into FOLDER/rank-N.pt.
"""

import os
import sys
from pathlib import Path

import torch
from tests.train import test_trainer_callbacks as runs
from tests.train._ranks import leave

from stockpot import errors
from stockpot.train import Schedule


def main(folder, name, how):
    callback = runs.CALLBACKS[name].PeriodicStockCallback(Schedule(every=1, unit="epoch"), replicas="ranks")
    if how == "together":
        # As a user who knows no better: Lightning joins ranks by its strategy, the other by torchrun's variables.
        more = {"strategy": "ddp", "devices": 2} if name == "lightning" else {}
        try:
            runs.RUNS[name](folder / os.environ["RANK"], callback, epochs=2, **more)
        except errors.UsageError as error:
            print("refused:", error, flush=True)
        return
    before = dict(os.environ)
    with runs.CALLBACKS[name].one_run_per_rank() as rank:
        assert "RANK" not in os.environ
        torch.manual_seed(rank)
        own = {"seed": rank} if name == "hf" else {"seed": rank, "devices": 1}
        ended = runs.RUNS[name](folder / str(rank), callback, epochs=2, **own)
    assert dict(os.environ) == before
    merges = [merge.at for merge in callback.stock.merges]
    torch.save({"weights": ended.weights, "steps": ended.steps, "merges": merges}, folder / f"rank-{rank}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
