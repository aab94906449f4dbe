"""One repetition of the demo's study: a base, fine-tunes at every learning rate, and every way to make one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import stockpot
from stockpot import soups
from stockpot.lab._digits import Examples, Split, load_digits, split
from stockpot.lab._glyphs import load_glyphs, render
from stockpot.lab._network import Batches, Training, Weights, kept_checkpoint, load_checkpoint, save_checkpoint
from stockpot.lab._networks import NETWORKS, Network
from stockpot.lab._random import stream
from stockpot.lab._reading import Reader, Reading, held_score, mean_of
from stockpot.lab._settings import DemoSettings
from stockpot.lab._training import (
    OptimizerState,
    averaged_while_training,
    averages_of_one_run,
    jittered_batches,
    merged_while_training,
    train,
)

Say = Callable[[str], None]
BY = "by held-out digits"
PERIODS = (6, 20, 40)
"""Steps between merges; six are an epoch."""
ALPHAS = tuple(number / 10 for number in range(11))
Kinds = dict[str, Reading]


@dataclass
class Trial:
    """``seed`` decides everything: who is trained on, the base, the orders, the shifts."""

    out: Path
    seed: int
    settings: DemoSettings
    say: Say

    @cached_property
    def network(self) -> Network:
        return NETWORKS[self.settings.network]

    @property
    def pretraining(self) -> Training:
        """Of the base."""
        return self.settings.pretraining or self.network.pretraining

    @cached_property
    def data(self) -> Split:
        return split(load_digits(), train_count=self.settings.train_digits, seed=self.seed)

    @cached_property
    def reader(self) -> Reader:
        return Reader(self.data, self.network, seed=self.seed, digits=self.settings.test_digits)

    @cached_property
    def base(self) -> Weights:
        """Pre-trained on printed digits, or kept from an earlier run."""
        how = self.pretraining

        def make() -> Weights:
            drawing, glyphs = stream(self.seed, "glyphs"), load_glyphs()

            def tell(step: int) -> None:
                if step % 100 == 0 or step == how.steps:
                    self.say(f"pre-training on printed digits: {step} of {how.steps} steps")

            batches = (render(glyphs, how.batch, drawing) for _ in range(how.steps))
            start = self.network.initial_weights(stream(self.seed, "network"))
            return train(start, batches, how, tell, self.network)

        return self._kept(self.out / "base", ("base", how), make)

    def folder(self, rate: float, number: int) -> Path:
        """Of a fine-tune, from 1; those at the greatest rate lie on top, for whoever plays on."""
        top = self.out if rate == max(self.settings.rates) else self.out / f"rate-{rate:g}"
        return top / f"finetune-{number}"

    def tuned(self, rate: float) -> list[Weights]:
        """All fine-tunes at a learning rate."""
        how, found = self.how(rate), []
        for number in range(1, self.settings.finetunes + 1):

            def make(number: int = number) -> Weights:
                return train(self.base, self.batches(rate, number), how, network=self.network)

            found.append(self._kept(self.folder(rate, number), ("finetune", number, self.pretraining, how), make))
        return found

    def how(self, rate: float) -> Training:
        """Of fine-tunes."""
        return Training(self.settings.steps, self.settings.batch, rate)

    def batches(self, rate: float, number: int) -> Batches:
        """Those of one seed: the same digits for all, the order and the jitter of its own."""
        return jittered_batches(self.data.train, self.how(rate), stream(self.seed, "finetune", number))

    def merged(self, method: str, members: Sequence[Weights], **parameters: Any) -> Weights:
        """As a user would do it."""
        base = None if method == "linear" else self.base
        return stockpot.merge_state_dicts(method, base=base, models=list(members), **parameters)

    def at(self, rate: float) -> Kinds:
        """Every way to make one model from fine-tunes at this rate."""
        read, tuned = self.reader.read, self.tuned(rate)
        self.say(f"fine-tuned on {len(self.data.train)} handwritten digits at {rate:g}: {len(tuned)} seeds")
        answers = [self.reader.answers(weights) for weights in tuned]
        singles = [self.reader.reading(one) for one in answers]
        pairs = list(zip(tuned[::2], tuned[1::2], strict=False))
        found: Kinds = {
            "one fine-tune": mean_of(singles),
            f"best fine-tune, {BY}": max(singles, key=lambda one: one.held_score),
        }
        found["average of 2"] = mean_of([read(self.merged("linear", pair)) for pair in pairs])
        found[f"WiSE-FT, alpha {BY}"] = mean_of([read(self._wise(one)) for one in tuned])
        found["ensemble of 2"] = mean_of(
            [self.reader.together(pair) for pair in zip(answers[::2], answers[1::2], strict=False)]
        )
        found["Model Stock of 2"] = mean_of([read(self.merged("model_stock", pair)) for pair in pairs])
        found["Model Stock of 2, one ratio"] = mean_of(
            [read(self.merged("model_stock", pair, granularity="model")) for pair in pairs]
        )
        if (count := len(tuned)) > 2:
            found[f"average of {count}"] = read(self.merged("linear", tuned))
            found[f"ensemble of {count}"] = self.reader.together(answers)
            found[f"Model Stock of {count}"] = read(self.merged("model_stock", tuned))
        folders = [self.folder(rate, number) for number in range(1, count + 1)]
        found[f"greedy soup of {count}"] = read(self.greedy(folders))
        found[f"learned soup of {count}"] = read(self.learned(folders))
        weights, _ = merged_while_training(
            self.base, self.network, [self.batches(rate, number) for number in (1, 2)], self.how(rate),
            every=self.settings.period,
        )  # fmt: skip
        found["Model Stock while training, of 2"] = read(weights)
        averages = averages_of_one_run(self.base, self.network, self.batches(rate, 1), self.how(rate))
        found |= {f"{name} of one run": read(own) for name, own in averages.items()}
        self.say(
            f"tested on {self.settings.test_digits:,} digits and {len(self.reader.shifts)} shifts of them: {rate:g}"
        )
        return found

    def sweep(self) -> Kinds:
        """Soups of fine-tunes from all rates, as many of each: together as many as at one rate."""
        each = max(self.settings.finetunes // len(self.settings.rates), 1)
        folders = [self.folder(rate, number) for rate in self.settings.rates for number in range(1, each + 1)]
        count = len(folders)
        return {
            f"greedy soup of {count}, all rates": self.reader.read(self.greedy(folders)),
            f"learned soup of {count}, all rates": self.reader.read(self.learned(folders)),
        }

    def held(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """What soups are chosen by."""
        accuracy, loss = self.reader.held_scores(dict(weights))
        return {"accuracy": accuracy, "score": held_score(accuracy, loss)}

    def greedy(self, folders: Sequence[Path]) -> Weights:
        """By held-out digits."""
        found = soups.greedy([str(one) for one in folders], evaluate=self.held, select="score")
        return _mixture(folders, found)

    def learned(self, folders: Sequence[Path]) -> Weights:
        """By gradient descent on held-out digits."""
        learner = _HeldOut(self.reader.held, self.network, self.seed)
        # A step for each batch: how many to take together would else be measured, and no two runs be the same.
        how = soups.Learning(accumulate=1)
        found = soups.learned([str(one) for one in folders], self.held, learn=learner, select="score", learning=how)
        return _mixture(folders, found)

    def periods(self, rate: float) -> Kinds:
        """What the period, the optimizers' states and the anchor do to merging two replicas while they train."""
        how, found = self.how(rate), {}

        def sources() -> list[Batches]:
            return [self.batches(rate, 1), self.batches(rate, 2)]

        for every in PERIODS:
            own, _ = merged_while_training(self.base, self.network, sources(), how, every=every)
            found[f"Model Stock every {every} steps"] = self.reader.read(own)
        states: tuple[OptimizerState, ...] = ("reset", "average")
        for state in states:
            own, _ = merged_while_training(
                self.base, self.network, sources(), how, every=PERIODS[1], optimizer_state=state
            )
            found[f"Model Stock every {PERIODS[1]} steps, optimizers: {state}"] = self.reader.read(own)
        for every in PERIODS[:2]:
            own = averaged_while_training(self.base, self.network, sources(), how, every=every)
            found[f"average every {every} steps"] = self.reader.read(own)
        self.say(f"merged while training, seven ways, at {rate:g}")
        return found

    def random_ones(self, tuned: Sequence[Weights]) -> list[Weights]:
        """The control: random directions, each tensor as far from the fine-tunes' mean as that fine-tune's."""
        centre, found = self.merged("linear", tuned), []
        for number, own in enumerate(tuned):
            drawn = stream(self.seed, "random weights", number)
            one = {}
            for name, middle in centre.items():
                noise = torch.randn(middle.shape, generator=drawn)
                one[name] = middle + noise * ((own[name] - middle).norm() / noise.norm())
            found.append(one)
        return found

    def _wise(self, weights: Weights) -> Weights:
        """Of the mixtures with the base, the best on held-out digits; of equals the nearest to the fine-tune."""
        mixtures = [self.merged("wise_ft", [weights], parameters={"alpha": alpha}) for alpha in ALPHAS]
        return max(mixtures, key=lambda one: self.held(one)["score"])

    def _kept(self, folder: Path, how: object, make: Callable[[], Weights]) -> Weights:
        made_by = f"1 {self.network.name} {self.seed} {self.settings.train_digits} {how}"
        found = kept_checkpoint(folder, made_by)
        if found is None:
            found = make()
            save_checkpoint(found, folder, made_by, self.network.name)
        return found


def _mixture(folders: Sequence[Path], found: soups.Soup) -> Weights:
    weights = {"weight": list(found.weights.values()), "normalize": False}
    models = [load_checkpoint(folders[number]) for number in found.weights]
    return stockpot.merge_state_dicts("linear", models=models, parameters=weights)


@dataclass(frozen=True)
class _HeldOut:
    """What a learned soup learns on."""

    examples: Examples
    network: Network
    seed: int
    content: Mapping[str, Any] | None = None

    def batches(self, epoch: int, folder: Path | None) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.examples), generator=stream(self.seed, "learned soup", epoch))
        for own in order.split(100):
            yield self.examples.images[own], self.examples.labels[own]

    def logits(self, weights: Mapping[str, Tensor], inputs: Any, folder: Path | None) -> Tensor:
        return self.network.logits(dict(weights), inputs)
