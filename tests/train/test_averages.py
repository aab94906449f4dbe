"""Averages of one run: each update's weights against sums in float64 written from the definitions."""

import copy

import numpy as np
import pytest
import torch
from tests.oracles.exact import numbers
from tests.train import _runs as runs
from tests.train._ranks import launch
from torch import nn

from stockpot import errors
from stockpot.train import EMA, LAWA, SWA, decay_weights, reestimate_batch_norm

AVERAGES = {
    "ema": lambda model: EMA(model, decay=0.9),
    "ema, warmed up": lambda model: EMA(model, decay=0.9, warm_up=True),
    "swa": SWA,
    "lawa": lambda model: LAWA(model, last=4),
    "lawa, as if decayed": lambda model: LAWA(model, last=4, decay="minus_sqrt"),
}


def coefficients(name, count):
    """What each of ``count`` updates counts for, oldest first: from the definitions."""
    if name == "swa":
        return [1 / count] * count
    if name.startswith("lawa"):
        last = min(count, 4)
        own = [1 / last] * last
        if "decayed" in name:
            # theta_0 + sum_j s(j/K) (theta_j - theta_{j-1}), s(x) = 1 - sqrt(x), gathered by theta.
            rate = [1 - (j / last) ** 0.5 for j in range(last)]
            own = [(rate[j] if j else 1) - (rate[j + 1] if j + 1 < last else 0) for j in range(last)]
        return [0.0] * (count - last) + own
    found = [1.0]
    for done in range(1, count):
        d = min(0.9, (1 + done) / (10 + done)) if "warmed" in name else 0.9
        found = [d * one for one in found] + [1 - d]
    return found


def trained(name, average_of, steps=9):
    """A short run with an update after each step: (model, average, all weights)."""
    model = runs.made(name)
    optimizer = runs.OPTIMIZERS["sgd"](model)
    average, seen = average_of(model), []
    for step in range(steps):
        runs.train_step(model, optimizer, 1, step)
        average.update()
        seen.append(copy.deepcopy(model.state_dict()))
    return model, average, seen


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("model", runs.MODELS)
def test_definitions(name, model):
    """Every floating tensor is the weighted sum of what it was at the updates, rounded once; no other is there."""
    own, average, seen = trained(model, AVERAGES[name])
    found = average.weights()
    frozen = {n for n, p in own.named_parameters() if not p.requires_grad}
    for tensor, value in own.state_dict().items():
        if tensor in frozen or not value.is_floating_point():
            assert tensor not in found
            continue
        exact = sum(c * numbers(one[tensor]) for c, one in zip(coefficients(name, 9), seen, strict=True))
        if "decayed" in name and "running" in tensor:
            exact = sum(numbers(one[tensor]) for one in seen[-4:]) / 4  # statistics are never extrapolated
        assert found[tensor].dtype == value.dtype
        digits = {torch.float32: 24, torch.bfloat16: 8}[value.dtype]
        step = np.ldexp(1.0, np.frexp(exact)[1] - digits)
        # Half a step for the one rounding, and what float64 (float32 for 16 bits) loses on the way.
        assert (np.abs(numbers(found[tensor]) - exact) <= 0.5001 * step + 1e-12).all(), tensor


@pytest.mark.parametrize("model", ["plain", "batch norm", "tied", "frozen"])
def test_swap_gives_the_weights_back(model):
    """Inside, the average; outside, every bit as it was: also when evaluation raises, or trains on."""
    own, average, _ = trained(model, SWA)
    before = copy.deepcopy(own.state_dict())
    mean = average.weights()
    with average.swap() as inside:
        assert inside is own
        assert all(torch.equal(own.state_dict()[name], tensor) for name, tensor in mean.items())
        assert not runs.same(own.state_dict(), before)
    assert runs.same(own.state_dict(), before)

    def evaluation():
        with average.swap():
            runs.train_step(own, runs.OPTIMIZERS["sgd"](own), 1, 0)
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        evaluation()
    assert runs.same(own.state_dict(), before)


def test_batch_norm_is_estimated_anew():
    """Plain averages of the batches' statistics under the averaged weights; all comes back afterwards."""
    own, average, _ = trained("batch norm", SWA)
    batches = [runs.batch(3, step, torch.float32) for step in range(5)]
    momentum = own[1].momentum
    before = copy.deepcopy(own.state_dict())
    own.eval()
    with average.swap(batches):
        inputs = [torch.nn.functional.linear(x, own[0].weight, own[0].bias).detach().double() for x, _ in batches]
        means = torch.stack([one.mean(dim=0) for one in inputs]).mean(dim=0)
        variances = torch.stack([one.var(dim=0) for one in inputs]).mean(dim=0)
        torch.testing.assert_close(own[1].running_mean.double(), means, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(own[1].running_var.double(), variances, rtol=1e-5, atol=1e-6)
        assert not own.training
    assert runs.same(own.state_dict(), before)
    assert own[1].momentum == momentum


def test_a_batch_that_raises_leaves_momenta_and_modes():
    """``update_bn`` alone would leave the momentum None."""
    model = runs.made("batch norm").eval()
    with pytest.raises(RuntimeError):
        reestimate_batch_norm(model, [torch.ones(3, runs.WIDTH + 1)])
    assert model[1].momentum == 0.1
    assert not model.training


@pytest.mark.parametrize("name", AVERAGES)
def test_a_killed_run_goes_on(tmp_path, name):
    """Saved after the fifth update, read with weights_only: the same average, bit for bit."""
    make = AVERAGES[name]
    _, whole, _ = trained("plain", make)
    model, average, _ = trained("plain", make, steps=5)
    optimizer = runs.OPTIMIZERS["sgd"](model)
    straight = runs.made("plain")
    its_own = runs.OPTIMIZERS["sgd"](straight)
    for step in range(5):
        runs.train_step(straight, its_own, 1, step)
    torch.save([model.state_dict(), its_own.state_dict(), average.state_dict()], tmp_path / "saved.pt")
    weights, moments, state = torch.load(tmp_path / "saved.pt", weights_only=True)
    model = runs.made("plain", seed=9)
    model.load_state_dict(weights)
    optimizer = runs.OPTIMIZERS["sgd"](model)
    optimizer.load_state_dict(moments)
    average = make(model)
    average.load_state_dict(state)
    for step in range(5, 9):
        runs.train_step(model, optimizer, 1, step)
        average.update()
    assert runs.same(average.weights(), whole.weights())


@pytest.mark.parametrize("shape", ["linear", "cosine", "minus_sqrt"])
@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_weights_of_a_decayed_rate(count, shape):
    """They sum to one, none is negative, and plain gradient descent ends where the decayed rate would have led it."""
    weights = decay_weights(count, shape)
    assert len(weights) == count
    assert sum(weights) == pytest.approx(1.0, abs=1e-12)
    assert min(weights) >= 0
    rate = {
        "linear": lambda x: 1 - x,
        "cosine": lambda x: (1 + np.cos(np.pi * x)) / 2,
        "minus_sqrt": lambda x: 1 - np.sqrt(x),
    }[shape]
    steps = np.random.default_rng(0).standard_normal(count)
    constant = np.cumsum(steps)
    decayed = steps[0] + sum(rate(j / count) * steps[j] for j in range(1, count))
    assert np.dot(weights, constant) == pytest.approx(decayed, abs=1e-12)


def test_a_small_rate_is_not_lost():
    """A hundred thousand tiny moves: float32 sums would stand still."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = EMA(model, decay=0.99999)
    average.update()
    nn.init.constant_(model.weight, 1.0 + 2**-20)
    for _ in range(2000):
        average.update()
    expected = 1 + 2**-20 * (1 - 0.99999**2000)
    assert average.state_dict()["wide"]["weight"].item() == pytest.approx(expected, abs=1e-15)


def test_bad_values_are_refused():
    """In one line; nothing averaged yet is told, too."""
    model = runs.made("plain")
    for decay in (-0.1, 1.0, 2.0, float("nan")):
        with pytest.raises(errors.ParameterError, match="decay of a moving average"):
            EMA(model, decay=decay)
    with pytest.raises(errors.ParameterError, match="at least 1"):
        LAWA(model, last=0)
    with pytest.raises(errors.UnknownNameError, match="minus_sqrt"):
        LAWA(model, last=2, decay="minus_sqr")
    with pytest.raises(errors.UsageError, match="nothing was averaged yet"), SWA(model).swap():
        pass


@pytest.mark.parametrize("name", ["ema", "swa", "lawa"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_over_several_processes(tmp_path, kind, name):
    """Replicated by DDP or sharded by FSDP2 over three ranks, one of which holds nothing of the head."""
    code, printed = launch("_averaging_ranks", 3, tmp_path, kind, name)
    assert code == 0, printed
    found = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(3)]
    counts = [0.9**4, *(0.1 * 0.9 ** (4 - j) for j in range(1, 5))] if name == "ema" else [0.2] * 5
    if name == "lawa":
        counts = [0, 0, 1 / 3, 1 / 3, 1 / 3]
    for seen, inside, after, shards in found:
        assert runs.same(after, seen[-1])
        assert runs.same(inside, found[0][1])
        assert bool(shards) == (kind == "fsdp2")
        for tensor, value in inside.items():
            exact = sum(c * numbers(one[tensor]) for c, one in zip(counts, seen, strict=True))
            np.testing.assert_allclose(numbers(value), exact, rtol=2**-24, atol=1e-12)
    assert kind == "ddp" or 0 in found[2][3]


@pytest.mark.parametrize("name", AVERAGES)
def test_swapped_in_until_swapped_out(name):
    """For frameworks that call back: saved in between, a new process gets the run's own weights back."""
    model, average, seen = trained("batch norm", AVERAGES[name])
    average.swap_in()
    mean = {key: own.clone() for key, own in model.state_dict().items()}
    assert not runs.same(mean, seen[-1])
    with pytest.raises(errors.UsageError, match="holds the average now"):
        average.update()
    average.swap_in()  # nothing happens
    saved = copy.deepcopy(average.state_dict())
    average.swap_out()
    assert runs.same(model.state_dict(), seen[-1])
    average.swap_out()
    other = runs.made("batch norm", seed=3)
    other.load_state_dict(mean)
    again = AVERAGES[name](other)
    again.load_state_dict(saved)
    assert runs.same(other.state_dict(), seen[-1])
    again.settle()
    assert runs.same(other.state_dict(), mean)
    again.swap_out()
    assert runs.same(other.state_dict(), mean)


def test_a_swap_that_breaks_leaves_the_weights():
    """BatchNorm's data raise: the model has its own weights."""
    model, average, seen = trained("batch norm", SWA)

    def broken():
        yield runs.batch(1, 0, torch.float32)[0]
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        average.swap_in(broken())
    assert runs.same(model.state_dict(), seen[-1])
    assert not average.is_swapped_in
