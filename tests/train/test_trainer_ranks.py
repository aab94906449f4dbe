"""Trainers under torchrun: each rank trains a replica of its own, and they meet."""

import pytest
import torch
from tests.train._ranks import launch
from tests.train._runs import same
from tests.train.test_trainer_callbacks import STEPS, network

import stockpot


@pytest.mark.parametrize("name", ["hf", "lightning"])
def test_each_rank_trains_its_own_replica(name, tmp_path):
    """Both end with the merge of what each had; before it they differ."""
    code, output = launch("_trainer_ranks", 2, tmp_path, name, "apart")
    assert code == 0, output
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2)]
    assert [one["merges"] for one in ranks] == [[1, 2], [1, 2]]
    assert same(ranks[0]["weights"], ranks[1]["weights"])
    last = [one["steps"][2 * STEPS - 1] for one in ranks]
    assert not same(*last)
    merged = stockpot.merge_state_dicts("model_stock", base=network().state_dict(), models=last)
    for key, own in merged.items():
        torch.testing.assert_close(ranks[0]["weights"][key], own, rtol=2**-22, atol=1e-9)


@pytest.mark.parametrize("name", ["hf", "lightning"])
def test_one_model_on_all_ranks_is_refused(name, tmp_path):
    """Gradients would be averaged at every step: no replicas."""
    code, output = launch("_trainer_ranks", 2, tmp_path, name, "together")
    assert code == 0, output
    assert output.count("the Trainer trains one model on 2 ranks; expected one replica on each rank") == 2
    assert "inside one_run_per_rank()" in output
