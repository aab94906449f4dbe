"""A program of four ranks: FSDP2 models and tensors cut both ways, saved by ``torch.distributed.checkpoint``.

``FOLDER``: writes FOLDER/NAME (distributed) and FOLDER/NAME.safetensors (the same, whole).
"""

import sys
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tests.models._zoo import KINDS, build, train
from tests.train._ranks import leave
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor


def whole(tensors):
    """Every tensor gathered, on every rank."""
    return {
        name: (t.full_tensor() if hasattr(t, "full_tensor") else t).contiguous().clone() for name, t in tensors.items()
    }


def save(state, weights, place):
    """Both forms."""
    full = whole(weights)
    dcp.save(state, checkpoint_id=str(place))
    if dist.get_rank() == 0:
        safetensors.torch.save_file(full, place.with_suffix(".safetensors"))
    dist.barrier()


def sharded_model(seed):
    """A fine-tune, sharded over all ranks, with an optimizer that has stepped."""
    kind = KINDS["llama"]
    model = build(kind.cls, kind.config(hidden_size=24, intermediate_size=34, vocab_size=66), seed=0)
    if seed:
        model = train(model, kind.batch, seed)
    model.train()
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)
    model(**kind.batch(torch.Generator().manual_seed(seed))).loss.backward()
    optimizer.step()
    return get_state_dict(model, optimizer, options=StateDictOptions())


def main(folder):
    dist.init_process_group("gloo")
    for seed in range(3):
        weights, optimizer = sharded_model(seed)
        save({"model": weights, "optimizer": optimizer, "step": 7}, weights, folder / f"fsdp{seed}")
    mesh = init_device_mesh("cpu", (2, 2))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)

        def cut(placements, *shape, of=generator):
            return distribute_tensor(torch.randn(shape, generator=of), mesh, placements)

        weights = {
            "both": cut((Shard(0), Shard(1)), 7, 10),
            "columns": cut((Replicate(), Shard(1)), 5, 9),
            "cube": cut((Shard(2), Shard(1)), 3, 4, 5).bfloat16(),
            "few": cut((Shard(0), Replicate()), 3),
            "rows": cut((Shard(0), Shard(0)), 6, 4),
            "turned": torch.randn(4, 6, generator=generator).t(),
            "number": torch.tensor(float(seed)),
            "count": torch.tensor(5),
            "empty": torch.empty(0, 3),
        }
        save(weights, weights, folder / f"grid{seed}")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
