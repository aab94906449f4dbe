"""Replicas side by side: whole ones, replicated ones, sharded ones; all against the merge of their gathered weights."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from tests.oracles.exact import steps
from tests.train import _runs as runs
from tests.train._ranks import HERE, launch

import stockpot

PLAIN = {"kind": "whole", "model": "plain", "optimizer": "adamw", "every": 3, "until": 8, "seeds": [1, 2, 3]}
CASES = {
    "two whole": (2, {}),
    "three whole, momentum, batch norm": (3, {"model": "batch norm", "optimizer": "sgd", "accumulate": 2}),
    "four whole, tied, by blocks": (4, {"model": "tied", "seeds": [1, 2, 3, 4], "options": {"granularity": "block"}}),
    "two replicated, mixed precision": (4, {"kind": "ddp", "shards": 2, "anchor": "file", "mixed": True}),
    "two sharded, by blocks of its own": (
        4, {
            "kind": "fsdp2", "shards": 2, "anchor": "file", "batch": "1KiB",
            "options": {"granularity": "block", "parameters": {"block_regex": r"^(\d)\."}},
        },
    ),
    "two sharded, mixed precision, momentum, accumulated": (
        4, {"kind": "fsdp2", "shards": 2, "mixed": True, "optimizer": "sgd", "accumulate": 2},
    ),
    "two sharded, bfloat16, by rows": (
        4, {"kind": "fsdp2", "shards": 2, "model": "bfloat16", "options": {"granularity": "row"}},
    ),
    "two sharded, frozen, one ratio": (
        4, {"kind": "fsdp2", "shards": 2, "model": "frozen", "options": {"granularity": "model"}, "batch": "1KiB"},
    ),
    "two whole, moments averaged": (2, {"optimizer_state": "average", "options": {"parameters": {"norms": "free"}}}),
}  # fmt: skip


def run(folder, ranks, how, program="_side_by_side_ranks"):
    """What each rank saved: (weights, weights before each merge, what merges found, which replica)."""
    torch.save(runs.made(how["model"]).state_dict(), folder / "w0.pt")
    code, printed = launch(program, ranks, folder, json.dumps(how))
    assert code == 0, printed
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_merge_of_gathered_weights(tmp_path, case):
    """A merge gives what ``merge_state_dicts`` gives, within one step of the dtype; all ranks have the same bits."""
    ranks, changes = CASES[case]
    how = {**PLAIN, **changes}
    found = run(tmp_path, ranks, how)
    weights, _, merges, _ = found[0]
    assert all(runs.same(one[0], weights) for one in found)
    assert [at for at, _, _ in merges] == [3, 6, 8]
    assert all(one[2][k][1] == merges[k][1] for one in found for k in range(3))
    replicas = {one[3]: one[1][-1] for one in found}
    frozen = {name for name, own in runs.made(how["model"]).named_parameters() if not own.requires_grad}
    base = runs.made(how["model"]).state_dict()
    expected = stockpot.merge_state_dicts(
        "model_stock", base=base, models=[replicas[number] for number in sorted(replicas)], **how.get("options", {})
    )
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, expected[name]), name
        elif name not in frozen:
            assert int(steps(tensor, expected[name]).max()) <= 1, name
    assert all(torch.equal(weights[name], base[name]) for name in frozen)
    first, second = list(replicas.values())[:2]
    assert not runs.same(first, second)


def test_equals_replicas_in_turn(tmp_path):
    """The same seeds in one process, one after another: the same weights, within what sums in another order change."""
    weights, _, merges, _ = run(tmp_path, 2, PLAIN)[0]
    expected, _, _ = runs.by_hand("plain", runs.OPTIMIZERS["adamw"], [1, 2], [3, 6, 8])
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
    assert all(0 < t < 1 for _, ratios, _ in merges for t in ratios.values())


def test_what_one_rank_finds_all_ranks_tell(tmp_path):
    """Another shape, another anchor, other options, NaN, on one rank: all raise, none hangs, no weight changes."""
    code, printed = launch("_refusing_ranks", 3, tmp_path)
    assert code == 0, printed
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(3)]
    for told in found:
        assert "rank 1 from rank 0" in told["shape"]
        assert "tensor 3.bias; expected float32 [4], got float32 [5]" in told["shape"]
        assert "rank 2 from rank 0" in told["name"]
        assert "other options" in told["options"]
        assert all(part in told["anchor"] for part in ("another shape", "tensor 0.weight"))
        assert "begin with different weights" in told["begin"]
        assert "replica 2 differs from replica 0" in told["begin"]
        assert "sharded (FSDP2); train them side by side" in told["sharded"]
        assert all(part in told["nan"] for part in ("not finite", "tensor 3.bias", "replica 1"))
        assert told["untouched"] is True


def ranks_alone(folder, count, words):
    """Processes without an agent that would end all when one ends; returns (exit code, output) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train._killed_ranks", str(folder), *words],
            env={
                **os.environ, "RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
            },
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=HERE.parents[1],
        )
        for rank in range(count)
    ]  # fmt: skip
    printed = [one.communicate(timeout=120)[0] for one in started]
    return [(one.returncode, text) for one, text in zip(started, printed, strict=True)]


def test_a_rank_killed_in_a_merge(tmp_path):
    """The others end with a clear line; started again from the last checkpoint, all end as if nothing had happened."""
    (tmp_path / "straight").mkdir()
    (tmp_path / "killed").mkdir()
    assert [code for code, _ in ranks_alone(tmp_path / "straight", 3, ["go"])] == [0, 0, 0]
    found = ranks_alone(tmp_path / "killed", 3, ["kill"])
    assert found[2][0] == -signal.SIGKILL
    for code, printed in found[:2]:
        assert code == 1
        assert "stockpot.errors.RunError: the ranks lost contact during a merge" in printed
        assert "start the job again from its last checkpoint" in printed
    assert [code for code, _ in ranks_alone(tmp_path / "killed", 3, ["resume"])] == [0, 0, 0]
    for rank in range(3):
        whole, resumed = (torch.load(tmp_path / how / f"rank{rank}.pt") for how in ("straight", "killed"))
        assert runs.same(resumed, whole)
