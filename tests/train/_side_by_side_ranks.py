"""Replicas side by side on the ranks of a job: whole, replicated by DDP or sharded by FSDP2."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tests.train import _runs as runs
from tests.train._averaging_ranks import full
from tests.train._ranks import leave
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from stockpot.train import Options, PeriodicStock, Schedule, SideBySide


def made(kind, name, shards, mixed):
    """(model, groups for SideBySide, which replica)."""
    model = runs.made(name)
    if kind == "whole":
        return model, {}, dist.get_rank()
    mesh = init_device_mesh("cpu", (dist.get_world_size() // shards, shards), mesh_dim_names=("replica", "shard"))
    if kind == "ddp":
        model = DistributedDataParallel(model, process_group=mesh.get_group("shard"))
        return model, {"replicas": mesh.get_group("replica")}, mesh.get_local_rank("replica")
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16) if mixed else MixedPrecisionPolicy()
    fully_shard(model, mesh=mesh["shard"], mp_policy=policy)
    groups = {"replicas": mesh.get_group("replica"), "shards": mesh.get_group("shard")}
    return model, groups, mesh.get_local_rank("replica")


def main(folder, how):
    """Train as ``how`` says; every rank saves its weights and what each merge found."""
    how = json.loads(how)
    folder = Path(folder)
    dist.init_process_group("gloo")
    model, groups, replica = made(how["kind"], how["model"], how.get("shards", 1), how.get("mixed", False))
    optimizer = runs.OPTIMIZERS[how["optimizer"]](model)
    rates = runs.schedule_of(optimizer)
    anchor = {None: None, "file": folder / "w0.pt"}[how.get("anchor")]
    stock = PeriodicStock(
        SideBySide(model, optimizer, batch=how.get("batch", "64MiB"), **groups),
        Schedule(how["every"], "step", until=how["until"]),
        anchor=anchor,
        optimizer_state=how.get("optimizer_state", "keep"),
        options=Options(**how.get("options", {})),
    )
    assert stock.replica == replica
    before = []
    while not stock.is_finished:
        autocast = how.get("mixed", False) and how["kind"] != "fsdp2"
        accumulate = how.get("accumulate", 1)
        runs.train_step(model, optimizer, how["seeds"][replica], stock.steps, accumulate=accumulate, mixed=autocast)
        rates.step()
        if stock.schedule.is_due(stock.steps + 1):
            before.append(full(model))
        stock.step()
    found = [(merge.at, merge.ratios, torch.from_numpy(merge.geometry.grams)) for merge in stock.merges]
    torch.save((full(model), before, found, replica), folder / f"rank{dist.get_rank()}.pt")
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
