"""Replicas in turn, merged while they train: what a user types, and what it equals."""

import copy
import json

import numpy as np
import pytest
import torch
from tests.oracles import model_stock as oracle
from tests.oracles.exact import numbers
from tests.train import _runs as runs

from stockpot import errors
from stockpot.train import InTurn, Options, PeriodicStock, Schedule


def run(
    name, make, seeds, schedule, *, accumulate=1, mixed=False, kill=None, saved=None, park="cpu", anchor=None, **options
):
    """What a user types. ``kill``: optimizer steps after which it ends, and the file that it has saved by then."""
    model = runs.made(name)
    optimizer = make(model)
    rates = runs.schedule_of(optimizer)
    replicas = InTurn(model, optimizer, count=len(seeds), extras=[rates], park=park)
    stock = PeriodicStock(replicas, schedule, anchor=anchor, **options)
    if saved is not None:
        state = torch.load(saved, weights_only=True)
        for one, own in zip((model, optimizer, rates, stock), state, strict=True):
            one.load_state_dict(own)
    taken = 0
    while not stock.is_finished:
        runs.train_step(model, optimizer, seeds[stock.replica], stock.steps, accumulate=accumulate, mixed=mixed)
        rates.step()
        stock.step()
        taken += 1
        if kill is not None and taken == kill[0]:
            torch.save([one.state_dict() for one in (model, optimizer, rates, stock)], kill[1])
            break
    return model, stock


@pytest.mark.parametrize("name", runs.MODELS)
@pytest.mark.parametrize("optimizer", runs.OPTIMIZERS)
def test_equals_models_of_their_own(name, optimizer):
    """Three replicas in one model are three models with optimizers and schedules of their own, merged and loaded."""
    make = runs.OPTIMIZERS[optimizer]
    model, stock = run(name, make, [1, 2, 3], Schedule(4, "step", warm_up=5, until=18))
    expected, _, _ = runs.by_hand(name, make, [1, 2, 3], [8, 12, 16, 18])
    assert [merge.at for merge in stock.merges] == [8, 12, 16, 18]
    assert runs.same(model.state_dict(), expected)


@pytest.mark.parametrize("granularity", ["tensor", "row", "block", "model"])
def test_each_merge_is_the_papers(granularity):
    """Every merge is w_H = t m + (1 - t) w0 around the first weights of all, to float64's oracle."""
    make = runs.OPTIMIZERS["adamw"]
    own = {"granularity": granularity}
    _, anchor, seen = runs.by_hand("plain", make, [1, 2], [5, 10], **own)
    model, stock = run("plain", make, [1, 2], Schedule(5, "step", until=10), options=Options(granularity=granularity))
    replicas, merged = seen[-1]
    assert runs.same(model.state_dict(), merged)
    if granularity != "tensor":
        return
    for tensor, weights in merged.items():
        exact = oracle.merge(anchor[tensor], [one[tensor] for one in replicas])
        np.testing.assert_allclose(numbers(weights), exact, rtol=2**-23, atol=1e-12)
        matrix = oracle.gram(anchor[tensor], [one[tensor] for one in replicas])[1:, 1:]
        assert stock.merges[-1].ratios[tensor] == pytest.approx(oracle.ratio(matrix), abs=1e-11)


def test_options_of_the_method_are_served():
    """Free norms, chosen tensors, gradient accumulation: as a merge of the same replicas has them."""
    make = runs.OPTIMIZERS["sgd"]
    own = {"parameters": {"norms": "free"}, "only": ("0",)}
    expected, _, _ = runs.by_hand("plain", make, [4, 5], [6, 12], accumulate=3, **own)
    options = Options(parameters={"norms": "free"}, only=("0",))
    model, _ = run("plain", make, [4, 5], Schedule(6, "step", until=12), accumulate=3, options=options)
    assert runs.same(model.state_dict(), expected)


def test_mixed_precision():
    """Weights in float32, arithmetic in bfloat16 by autocast: as by hand."""
    make = runs.OPTIMIZERS["adamw"]
    expected, _, _ = runs.by_hand("plain", make, [4, 5], [6, 12], mixed=True)
    model, _ = run("plain", make, [4, 5], Schedule(6, "step", until=12), mixed=True)
    assert runs.same(model.state_dict(), expected)


def test_a_period_longer_than_training_is_merging_afterwards():
    """One merge, at the end."""
    make = runs.OPTIMIZERS["adamw"]
    model, stock = run("plain", make, [1, 2], Schedule(100, "step", until=9))
    expected, _, _ = runs.by_hand("plain", make, [1, 2], [9])
    assert [merge.at for merge in stock.merges] == [9]
    assert runs.same(model.state_dict(), expected)


@pytest.mark.parametrize("name", ["plain", "batch norm", "bfloat16"])
def test_identical_seeds_are_the_single_run(name):
    """N times the same: t is 1 everywhere, and the weights are the single run's, bit for bit."""
    make = runs.OPTIMIZERS["adamw"]
    model, stock = run(name, make, [7, 7, 7], Schedule(3, "step", until=12))
    alone = runs.made(name)
    optimizer = make(alone)
    rates = runs.schedule_of(optimizer)
    for step in range(12):
        runs.train_step(alone, optimizer, 7, step)
        rates.step()
    assert runs.same(model.state_dict(), alone.state_dict())
    assert {round(t, 12) for merge in stock.merges for t in merge.ratios.values() if t is not None} == {1.0}


def test_the_anchor_never_moves(tmp_path):
    """In memory, as a map or as a checkpoint: always the first weights, and the same result."""
    make = runs.OPTIMIZERS["adamw"]
    first = copy.deepcopy(runs.made("plain").state_dict())
    torch.save(first, tmp_path / "w0.pt")
    found = [
        run("plain", make, [1, 2], Schedule(4, "step", until=12), anchor=anchor)
        for anchor in (None, first, tmp_path / "w0.pt")
    ]
    assert all(runs.same(model.state_dict(), found[0][0].state_dict()) for model, _ in found)
    for _, stock in found:
        assert runs.same(first, runs.made("plain").state_dict())
        norms = [merge.geometry.base_norms for merge in stock.merges]
        assert all(np.array_equal(one, norms[0]) for one in norms)


@pytest.mark.parametrize("name", ["plain", "tied", "batch norm"])
def test_parked_on_disk(tmp_path, name):
    """A folder instead of memory: the same weights, one file for each replica that waits."""
    make, schedule = runs.OPTIMIZERS["adamw"], Schedule(4, "step", until=12)
    model, _ = run(name, make, [1, 2, 3], schedule, park=tmp_path / "parked")
    expected, _ = run(name, make, [1, 2, 3], schedule)
    assert runs.same(model.state_dict(), expected.state_dict())
    assert sorted(path.name for path in (tmp_path / "parked").iterdir()) == [
        "replica-0.safetensors", "replica-1.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["keep", "reset", "average"])
def test_optimizer_state(how):
    """Each its own, none, or the mean of the moments; rates run on in any case."""
    make = runs.OPTIMIZERS["adamw"]
    model = runs.made("plain")
    optimizer = make(model)
    rates = runs.schedule_of(optimizer)
    replicas = InTurn(model, optimizer, count=2, extras=[rates])
    stock = PeriodicStock(replicas, Schedule(5, "step", until=10), optimizer_state=how)
    before = []
    while not stock.merges:
        runs.train_step(model, optimizer, stock.replica, stock.steps)
        rates.step()
        if stock.steps == 4:
            before.append(copy.deepcopy(optimizer.state_dict()))
        stock.step()
    after = optimizer.state_dict()
    assert after["param_groups"][0]["lr"] == rates.get_last_lr()[0] < 0.02
    if how == "reset":
        assert after["state"] == {}
    for number, own in after["state"].items():
        moments = [one["state"][number]["exp_avg"].double() for one in before]
        expected = moments[0] if how == "keep" else (moments[0] + moments[1]) / 2
        assert torch.equal(own["exp_avg"], expected.float())
        assert own["step"] == 5


def test_reset_equals_optimizers_without_memory():
    """After a reset all go on as by hand."""
    make = runs.OPTIMIZERS["sgd"]
    model, _ = run("plain", make, [1, 2], Schedule(3, "step", until=9), optimizer_state="reset")
    expected, _, _ = runs.by_hand("plain", make, [1, 2], [3, 6, 9], reset=True)
    assert runs.same(model.state_dict(), expected)


def plain(merge):
    """All that a merge found, as text; the order of tensors on disk is another."""
    return json.dumps(merge.data(), sort_keys=True)


@pytest.mark.parametrize("stop_at", [2, 5, 6, 11, 17])
@pytest.mark.parametrize("park", ["cpu", "parked"])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, stop_at, park):
    """Killed in any replica's turn and at a merge; all is read with weights_only, and the records are there."""
    make, schedule = runs.OPTIMIZERS["adamw"], Schedule(3, "step", until=9)
    whole, straight = run("batch norm", make, [1, 2], schedule)
    place = park if park == "cpu" else tmp_path / park
    saved = tmp_path / "saved.pt"
    run("batch norm", make, [1, 2], schedule, kill=(stop_at, saved), park=place)
    model, stock = run("batch norm", make, [1, 2], schedule, saved=saved, park=place)
    assert runs.same(model.state_dict(), whole.state_dict())
    assert list(map(plain, stock.merges)) == list(map(plain, straight.merges))


def test_parked_files_of_later_turns_do_not_mix_in(tmp_path):
    """What is resumed is what was saved, though the killed run had parked newer weights since."""
    make, schedule = runs.OPTIMIZERS["adamw"], Schedule(3, "step", until=9)
    whole, _ = run("plain", make, [1, 2], schedule)
    saved = tmp_path / "saved.pt"
    run("plain", make, [1, 2], schedule, kill=(4, saved), park=tmp_path / "parked")
    run("plain", make, [1, 2], schedule, park=tmp_path / "parked")
    model, _ = run("plain", make, [1, 2], schedule, saved=saved, park=tmp_path / "parked")
    assert runs.same(model.state_dict(), whole.state_dict())


def test_only_adapters_train():
    """LoRA by peft: the frozen base stays where it is, nothing of it is parked or saved."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(runs.made("plain"), LoraConfig(r=2, target_modules=["0", "3"], init_lora_weights=False))
    optimizer = torch.optim.AdamW(runs.asking(model), lr=0.02)
    stock = PeriodicStock(InTurn(model, optimizer, count=2), Schedule(3, "step", until=6))
    frozen = {name: own.clone() for name, own in model.state_dict().items() if "lora" not in name}
    while not stock.is_finished:
        runs.train_step(model, optimizer, stock.replica, stock.steps)
        stock.step()
    assert set(stock.merges[0].ratios) == {name for name in model.state_dict() if "lora" in name}
    assert all(torch.equal(model.state_dict()[name], own) for name, own in frozen.items())
    assert all("lora" in name for name in stock.state_dict()["replicas"]["start"])


def test_epochs_are_told():
    """Steps may be counted too: only epochs decide here."""
    model = runs.made("plain")
    stock = PeriodicStock(InTurn(model, count=2), Schedule(2, "epoch", until=4))
    turns = []
    while not stock.is_finished:
        turns.append((stock.replica, stock.epochs, stock.steps))
        for _ in range(3):
            assert stock.step() is None
        stock.epoch_end()
    assert turns == [(r, e, 3 * e) for es in ((0, 1), (2, 3)) for r in (0, 1) for e in es]


def damaged(how):
    """A stock before its second merge, with a replica gone wrong."""
    model = runs.made("batch norm")
    stock = PeriodicStock(InTurn(model, count=2), Schedule(1, "epoch", until=2))
    with torch.no_grad():
        model[0].weight += 0.1
    stock.epoch_end()
    with torch.no_grad():
        how(model)
    return model, stock


@pytest.mark.parametrize("tensor", ["3.weight", "1.running_var"])
def test_nan_is_refused_and_named(tensor):
    """The replica and the tensor are named; no weight of the model has changed."""
    model, stock = damaged(lambda model: model.state_dict()[tensor].view(-1)[0].fill_(float("nan")))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(errors.NonFiniteError) as caught:
        stock.epoch_end()
    assert caught.value.tensor == tensor
    assert "replica 1" in str(caught.value)
    assert all(torch.equal(own, model.state_dict()[name]) or own.isnan().any() for name, own in before.items())
    assert stock.merges == []


def test_what_cannot_work_is_refused_at_once(tmp_path):
    """In one line, before anything is trained."""
    model = runs.made("plain")
    for value in (0, -1, 1.5):
        with pytest.raises(errors.ParameterError, match="every of a schedule"):
            Schedule(value)
    with pytest.raises(errors.ParameterError, match="at least 2"):
        InTurn(model, count=1)
    with pytest.raises(errors.UnknownNameError, match="average"):
        PeriodicStock(InTurn(model, count=2), Schedule(1), optimizer_state="averge")
    other = {name: tensor[:-1] for name, tensor in model.state_dict().items()}
    with pytest.raises(errors.MismatchError):
        PeriodicStock(InTurn(model, count=2), Schedule(1), anchor=other)
    with pytest.raises(errors.MissingTensorError):
        PeriodicStock(InTurn(model, count=2), Schedule(1), anchor={"0.weight": model[0].weight})
    with pytest.raises(errors.NotFoundError):
        PeriodicStock(InTurn(model, count=2), Schedule(1), anchor=tmp_path / "none")


def test_another_run_is_not_gone_on_with():
    """Another anchor on disk, another number of replicas, another unit."""
    model = runs.made("plain")
    state = PeriodicStock(InTurn(model, count=2), Schedule(1)).state_dict()
    with pytest.raises(errors.ParameterError, match="number of replicas"):
        PeriodicStock(InTurn(model, count=3), Schedule(1)).load_state_dict(state)
    with pytest.raises(errors.ParameterError, match="counts otherwise"):
        PeriodicStock(InTurn(model, count=2), Schedule(1, "step")).load_state_dict(state)


def test_an_anchor_on_disk_is_the_runs(tmp_path):
    """Another file in its place is told."""
    model = runs.made("plain")
    torch.save(model.state_dict(), tmp_path / "w0.pt")
    torch.save(runs.made("plain", seed=1).state_dict(), tmp_path / "other.pt")
    state = PeriodicStock(InTurn(model, count=2), Schedule(1), anchor=tmp_path / "w0.pt").state_dict()
    assert state["replicas"]["anchor"] is None
    with pytest.raises(errors.ParameterError, match="not the one that the run began with"):
        PeriodicStock(InTurn(model, count=2), Schedule(1), anchor=tmp_path / "other.pt").load_state_dict(state)
