"""What goes wrong on one rank of three."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tests.train import _runs as runs
from tests.train._ranks import leave
from torch import nn
from torch.distributed.fsdp import fully_shard

from stockpot import errors
from stockpot.train import InTurn, Options, PeriodicStock, Schedule, SideBySide


def refusal(model, **options):
    """The line that this rank's user sees."""
    try:
        PeriodicStock(SideBySide(model), Schedule(1), **options)
    except errors.StockpotError as error:
        return str(error)
    return "nothing"


def main(folder):
    """One trouble after another; each rank writes what it was told."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    told = {}
    model = runs.made("plain")
    if rank == 1:
        model[3] = nn.Linear(9, runs.CLASSES + 1)
    told["shape"] = refusal(model)
    model = runs.made("plain")
    if rank == 2:
        model.append(nn.Linear(2, 2))
    told["name"] = refusal(model)
    model = runs.made("plain")
    told["options"] = refusal(model, options=Options(granularity="model" if rank == 1 else "tensor"))
    anchor = runs.made("plain").state_dict()
    if rank == 2:
        anchor["0.weight"] = anchor["0.weight"][:-1]
    told["anchor"] = refusal(model, anchor=anchor)
    told["begin"] = refusal(runs.made("plain", seed=5 if rank == 2 else 0))
    sharded = runs.made("plain")
    fully_shard(sharded)
    try:
        InTurn(sharded, count=2)
    except errors.UsageError as error:
        told["sharded"] = str(error)
    stock = PeriodicStock(SideBySide(model), Schedule(1))
    with torch.no_grad():
        model[0].weight += rank
        if rank == 1:
            model[3].bias[2] = float("nan")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        stock.epoch_end()
    except errors.NonFiniteError as error:
        told["nan"] = str(error)
    same = (torch.equal(own.nan_to_num(7), before[name].nan_to_num(7)) for name, own in model.state_dict().items())
    told["untouched"] = all(same)
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(told))
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
