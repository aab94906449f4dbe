"""Fine-tunes of the demo: alone, with averages of the run, and as replicas that are merged on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stockpot
from stockpot.lab._digits import Examples, jittered
from stockpot.lab._network import Batches, Training, Weights, schedule
from stockpot.lab._networks import NETWORKS, Network
from stockpot.train import EMA, SWA, InTurn, Merge, PeriodicStock, Schedule

EMA_DECAY = 0.95
"""Of runs of 120 steps: about the last 20 count."""
OptimizerState = Literal["keep", "reset", "average"]


def jittered_batches(examples: Examples, how: Training, generator: torch.Generator) -> Batches:
    """Batches drawn with their order and jitter from one generator, without end."""
    while True:
        batch = examples.take(torch.randint(len(examples), (how.batch,), generator=generator))
        yield Examples(jittered(batch.images, generator), batch.labels)


class Net(nn.Module):
    """Weights by name as a module, for what works on modules."""

    def __init__(self, weights: Weights, network: Network) -> None:
        super().__init__()
        self.network = network
        for name, tensor in weights.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(tensor.clone()))

    def weights(self) -> Weights:
        """By the names that they came with."""
        return {name.replace("/", "."): own for name, own in self.named_parameters()}

    def values(self) -> Weights:
        """The same, as they are now."""
        return {name: own.detach().clone() for name, own in self.weights().items()}

    def forward(self, images: Tensor) -> Tensor:
        return self.network.logits(self.weights(), images)


class _Run:
    """The one training loop."""

    def __init__(self, start: Weights, network: Network, how: Training) -> None:
        self.net, self.how = Net(start, network), how
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay, fused=True
        )

    def step(self, number: int, batches: Iterator[Examples]) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.how.learning_rate * schedule(number, self.how.steps)
        examples = next(batches)
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(examples.images), examples.labels).backward()
        self.optimizer.step()


def train(
    start: Weights,
    batches: Batches,
    how: Training,
    after_step: Callable[[int], None] | None = None,
    network: Network = NETWORKS["conv"],
) -> Weights:
    """New weights, trained from ``start`` on the next ``how.steps`` batches; ``start`` is left as it is.

    Equal arguments give equal weights on one machine: nothing here draws a random number. Calls ``after_step`` with
    the number of steps done.
    """
    run = _Run(start, network, how)
    for number in range(how.steps):
        run.step(number, batches)
        if after_step is not None:
            after_step(number + 1)
    return run.net.values()


def averages_of_one_run(start: Weights, network: Network, batches: Batches, how: Training) -> dict[str, Weights]:
    """One run's EMA of every step, and SWA of every fifth over its last half."""
    run = _Run(start, network, how)
    ema, swa = EMA(run.net, EMA_DECAY), SWA(run.net)
    for number in range(how.steps):
        run.step(number, batches)
        ema.update()
        if number >= how.steps // 2 and (number + 1) % 5 == 0:
            swa.update()
    found = {}
    for name, average in (("EMA", ema), ("SWA", swa)):
        if average.count:
            with average.swap():
                found[name] = run.net.values()
    return found


def merged_while_training(
    start: Weights,
    network: Network,
    batches: Sequence[Batches],
    how: Training,
    *,
    every: int,
    optimizer_state: OptimizerState = "keep",
) -> tuple[Weights, list[Merge]]:
    """Replicas, one for each source of batches, merged by Model Stock after ``every`` steps: (weights, records)."""
    run = _Run(start, network, how)
    stock = PeriodicStock(
        InTurn(run.net, run.optimizer, count=len(batches)), Schedule(every=every, unit="step", until=how.steps),
        optimizer_state=optimizer_state,
    )  # fmt: skip
    while not stock.is_finished:
        run.step(stock.steps, batches[stock.replica])
        stock.step()
    return run.net.values(), stock.merges


def averaged_while_training(
    start: Weights, network: Network, batches: Sequence[Batches], how: Training, *, every: int
) -> Weights:
    """The same with plain means instead: what is left is what the anchor's pull does."""
    runs = [_Run(start, network, how) for _ in batches]
    merged = start
    for number in range(how.steps):
        for run, own in zip(runs, batches, strict=True):
            run.step(number, own)
        if (number + 1) % every == 0 or number + 1 == how.steps:
            merged = stockpot.merge_state_dicts("linear", models=[run.net.values() for run in runs])
            for run in runs:
                with torch.no_grad():
                    for name, own_weights in run.net.weights().items():
                        own_weights.copy_(merged[name])
    return merged
