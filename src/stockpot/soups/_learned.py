"""Learned soups: coefficients by gradient descent on held-out data, with one live model and the ingredients on disk."""

from __future__ import annotations

import contextlib
import ctypes
import io
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stockpot import engine, errors
from stockpot.checkpoint import Source
from stockpot.evaluate import Learner, content_key, load_learner
from stockpot.measure import Array
from stockpot.soups._ingredients import Correspondence, Ingredients, Model
from stockpot.soups._running import Evaluation, Running
from stockpot.soups._scorer import content_of
from stockpot.soups._soup import Soup, Study

READING_SHARE = 0.2
"""What reading may take of a step, where there are batches enough."""
_GRADIENT = "gradient"


@dataclass(frozen=True)
class Learning:
    """How coefficients are learned; the defaults are the published by-layer setting (AdamW, no decay).

    ``by_layer``: one set for each tensor instead of one for the model. ``free``: any coefficients, equal at the start,
    instead of a mixture (softmax). ``temperature``: learn the inverse temperature of the logits too. ``accumulate``:
    batches for one step (None: so many that reading stays under a fifth of the time, measured at the start).
    """

    by_layer: bool = False
    free: bool = False
    temperature: bool = True
    epochs: int = 5
    rate: float = 0.05
    accumulate: int | None = None

    def __post_init__(self) -> None:
        for name, value in {"epochs": self.epochs, "accumulate": self.accumulate, "rate": self.rate}.items():
            if value is not None and not 0 < value < math.inf:
                raise errors.ParameterError(f"{name} of a learned soup", expected="more than 0", got=value)


@dataclass(frozen=True)
class Estimate:
    """What a learned soup will cost, measured on one batch: seconds to build the mixture and to take the products
    (both read all ingredients), seconds of a batch, bytes read in a step.
    """

    read_seconds: float
    batch_seconds: float
    bytes_read: int
    batches: int
    accumulate: int
    epochs: int

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.epochs * math.ceil(self.batches / self.accumulate)

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.steps * self.read_seconds + self.epochs * self.batches * self.batch_seconds

    def line(self) -> str:
        """In words."""
        share = self.read_seconds / (self.read_seconds + self.accumulate * self.batch_seconds)
        return (
            f"{self.steps} steps of {self.accumulate} batches, each reading {self.bytes_read / 1e9:.3g} GB in "
            f"{self.read_seconds:.3g} s ({100 * share:.0f} % of its time); about {self.seconds:.3g} s in all"
        )


def learned(
    models: Sequence[Model],
    evaluate: Evaluation,
    *,
    learn: str | Learner | None = None,
    base: Model | None = None,
    out: str | Path | None = None,
    select: str | None = None,
    test: Evaluation | None = None,
    learning: Learning | None = None,
    overwrite: bool = False,
    correspondence: Correspondence | None = None,
    running: Running | None = None,
) -> Soup:
    """Coefficients that minimise the loss on held-out data by gradient descent.

    min over alpha, b of the mean of CE(b f(x; sum_k alpha_k w_k), y), alpha = softmax(raw) with raw equal at the start,
    so that step 0 is the uniform soup with b = 1. The gradient is exact: dL / d alpha_k = <dL/dw, w_k> (by tensor: of
    that tensor), from one backward pass through one live model in float32 and one read of the ingredients.

    Arguments: ``evaluate`` scores singles, the uniform soup and the result; ``learn``, the task to learn on: words
    (``images:``, ``text:``, ``module:object``) or a Learner; default: the words of ``evaluate``; ``learning``, how; the
    rest as ``greedy``. Returns a Soup; by layer its ``weights`` are the means over tensors, all are in its recipe.
    Raises UsageError kinds, EvaluatorError where loss or gradient are not finite. Cost: each step reads all ingredients
    twice; N + 2 evaluations (one more with a base). Memory: the live model, its gradient, and what a batch takes. The
    same call goes on where it was stopped, if the cache is on disk. Reference: Wortsman et al., arXiv 2203.05482,
    appendix (learned soup).
    """
    how = learning or Learning()
    study = Study.begin(models, base, evaluate, select, test, correspondence, running, out, overwrite)
    if learn is None and not isinstance(evaluate, str):
        raise errors.UsageError("a learned soup needs gradients", remedy="give learn: batches and logits to learn on")
    words = learn if learn is not None else evaluate
    options = replace(study.running.options, seed=study.running.seed)
    learner = load_learner(words, options) if isinstance(words, str) else words
    assert isinstance(learner, Learner)
    count = len(study.ingredients.models)
    study.expect(count + (count > 1) + 1)
    candidates = study.singles()
    if count > 1:
        candidates.append(study.candidate("uniform soup", "uniform", study.even(range(count))))
    assert study.scorer is not None
    found = _Descent(study.ingredients, learner, how, study.running, study.scorer.live).run()
    recipe = study.ingredients.mixture(found.weights, found.names)
    mean = found.weights if found.weights.ndim == 1 else found.weights.mean(axis=0)
    weights = dict(enumerate(mean.tolist()))
    candidates.append(study.candidate("learned soup", "learned", weights, recipe))
    notes = [
        f"loss on the batches of the first step {found.losses[0]:.4g}, of the last ({len(found.losses)}) "
        f"{found.losses[-1]:.4g}; inverse temperature {found.temperature:.4g}",
        found.estimate.line() if found.estimate is not None else "continued from an earlier run",
    ]
    last = study.gain(candidates[-1])
    if better := [one.label for one in candidates[:-1] if study.gain(one) > last]:
        notes.append(
            f"{len(better)} others score better than the learned soup ({', '.join(better[:3])}): more epochs, "
            "another rate, or fewer models"
        )
    return study.finish("learned", weights, (), candidates, out, overwrite, notes, recipe=recipe)


def _give_back() -> None:
    """What the last batch took goes back to the system, where the C library can: reading needs room of its own."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@dataclass
class _Found:
    """What was learned. ``losses``: of each step before it was taken."""

    weights: Array
    names: tuple[str, ...]
    temperature: float
    losses: list[float]
    estimate: Estimate | None


class _Descent:
    """The search: coefficients, their optimizer, the live model and its gradient."""

    def __init__(
        self,
        ingredients: Ingredients,
        learner: Learner,
        how: Learning,
        running: Running,
        live: engine.LiveModel | None = None,
    ) -> None:
        """``live``: the model that was scored before; its memory serves here too."""
        self.ingredients = replace(ingredients, correspondence=replace(ingredients.correspondence, dtype="float32"))
        self.learner = learner
        self.how = how
        self.running = running
        self.count = len(ingredients.models)
        self.live = live or running.live(self.ingredients)
        uniform = self.live.plan(self.ingredients.average(range(self.count)))
        self.folder = uniform.template.folder
        self.names = tuple(sorted(group.name for group in uniform.groups))
        rows = len(self.names) if how.by_layer else 1
        start = 1.0 / self.count if how.free else 0.0
        self.raw = torch.full((rows, self.count), start, dtype=torch.float64)
        self.temperature = torch.ones((), dtype=torch.float64, requires_grad=True)
        parameters = [self.raw, self.temperature] if how.temperature else [self.raw]
        self.optimizer = torch.optim.AdamW(parameters, lr=how.rate, weight_decay=0.0)
        self.losses: list[float] = []
        self.accumulate = how.accumulate
        self.leaves: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.plans: list[engine.Plan] = []

    def run(self) -> _Found:
        """All epochs, from where an earlier run was stopped."""
        key = self._key()
        cache = self.running.results
        done = self._restore(cache.state(key)) if key is not None else 0
        estimate = None
        if self.accumulate is None or not done:
            estimate = self._estimate()
            self.accumulate = estimate.accumulate
            if self.running.told is not None:
                self.running.told(estimate.line())
        step = 0
        for epoch in range(self.how.epochs):
            batches = iter(self.learner.batches(epoch, self.folder))
            while chunk := list(islice(batches, self.accumulate)):
                if step >= done:
                    self.losses.append(self._step(chunk))
                    if key is not None:
                        cache.keep_state(key, self._state())
                step += 1
        self._let_go()
        weights = self.weights()
        return _Found(
            weights if self.how.by_layer else weights[0],
            self.names,
            float(self.temperature.detach()),
            self.losses,
            estimate,
        )

    def _let_go(self) -> None:
        """What is evaluated next needs the memory."""
        for leaf in self.leaves.values():
            leaf.grad = None
        self.leaves, self.gradients, self.plans = {}, {}, []

    def weights(self) -> Array:
        """Coefficients, shape ``(1 or tensors, N)``."""
        raw = self.raw.detach()
        return np.asarray((raw if self.how.free else raw.softmax(dim=1)).numpy().copy())

    def _mixed(self) -> None:
        """The live model becomes the present mixture; its gradient is zero."""
        _give_back()
        weights = self.weights()
        recipe = self.ingredients.mixture(weights if self.how.by_layer else weights[0], self.names)
        state = self.live.become(self.live.plan(recipe))
        if {name: tensor.data_ptr() for name, tensor in state.items()} != {
            name: tensor.data_ptr() for name, tensor in self.leaves.items()
        }:
            shared: dict[int, Tensor] = {}
            for name, tensor in state.items():  # aliases share one leaf, so that both their gradients count
                if tensor.data_ptr() not in shared or not tensor.numel():
                    shared[tensor.data_ptr()] = tensor.detach().requires_grad_(tensor.is_floating_point())
                self.leaves[name] = shared[tensor.data_ptr()] if tensor.numel() else tensor
        for gradient in self.gradients.values():
            gradient.zero_()

    def _backward(self, chunk: Sequence[tuple[Any, Tensor]]) -> float:
        """The mean loss of some batches; its gradient in the leaves and the temperature."""
        examples = sum(len(labels) for _, labels in chunk)
        total = 0.0
        for inputs, labels in chunk:
            try:
                logits = self.learner.logits(self.leaves, inputs, self.folder)
                goal = labels.to(logits.device)
                loss = F.cross_entropy(self.temperature.to(logits) * logits, goal, reduction="sum")
                (loss / examples).backward()
            except errors.StockpotError:
                raise
            except Exception as error:
                said = f"{type(error).__name__}: {error}".rstrip(": ")
                raise errors.EvaluatorError(
                    f"the task to learn on failed ({said:.300})", remedy="-v shows where"
                ) from error
            total += loss.item()
        if all(self.leaves[name].grad is None for name in self.names):
            raise errors.EvaluatorError(
                "no gradient reaches the weights", expected="logits computed from the weights that are given",
                remedy="torch.func.functional_call(model, weights, ...) instead of load_state_dict",
            )  # fmt: skip
        if not math.isfinite(total):
            raise errors.EvaluatorError(
                "the loss of the mixture is not finite",
                got=total,
                remedy="leave models that diverged out, or a lower rate",
            )
        return total / examples

    def _products(self) -> Array:
        """<dL/dw, w_k> by tensor, shape ``(tensors, N)``; each ingredient is read once."""
        if not self.plans:
            for name in self.names:
                leaf = self.leaves[name]
                leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.contiguous()
                self.gradients[name] = leaf.grad
            sources = {**self.ingredients.sources, _GRADIENT: engine.MemorySource(self.gradients, _GRADIENT)}
            self.plans = [
                engine.plan_products(
                    self.ingredients.against(_GRADIENT, number), sources, memory=self.running.memory_bytes,
                    workers=self.running.workers, device=engine.choose_device(self.running.device),
                )
                for number in range(self.count)
            ]  # fmt: skip
        found = [engine.products(plan) for plan in self.plans]
        return np.array([[one[name] for one in found] for name in self.names])

    def gradient(self, products: Array) -> Array:
        """dL / d raw from dL / d alpha, shape ``(1 or tensors, N)``: through the softmax, unless free."""
        own = products if self.how.by_layer else products.sum(axis=0, keepdims=True)
        if self.how.free:
            return own
        alpha = self.weights()
        return np.asarray(alpha * (own - (alpha * own).sum(axis=1, keepdims=True)))

    def _step(self, chunk: Sequence[tuple[Any, Tensor]]) -> float:
        """One step of the optimizer; the loss before it."""
        self.optimizer.zero_grad(set_to_none=False)
        self._mixed()
        loss = self._backward(chunk)
        self.raw.grad = torch.from_numpy(self.gradient(self._products()))
        self.optimizer.step()
        return loss

    def _estimate(self) -> Estimate:
        """One batch and one reading, measured after a first that warms everything up; nothing is learned by it."""
        batches: Iterable[tuple[Any, Tensor]] = self.learner.batches(0, self.folder)
        first, count = None, 0
        for batch in batches:
            first = first or batch
            count += 1
        if first is None:
            raise errors.EvaluatorError("there is no batch to learn from")
        self._mixed()
        self._backward([first])
        self._products()
        marks = [time.perf_counter()]
        self._mixed()
        marks.append(time.perf_counter())
        self._backward([first])
        marks.append(time.perf_counter())
        self._products()
        marks.append(time.perf_counter())
        self.temperature.grad = None
        read, batch_seconds = marks[1] - marks[0] + marks[3] - marks[2], marks[2] - marks[1]
        wanted = math.ceil(read * (1.0 - READING_SHARE) / READING_SHARE / max(batch_seconds, 1e-9))
        size = 2 * sum(sum(info.nbytes for info in source.tensors.values()) for source in self._models())
        wanted = 1 << (max(wanted, 1) - 1).bit_length()  # a power of two: the same on a machine that is a little slower
        accumulate = min(wanted, count) if self.accumulate is None else self.accumulate
        return Estimate(read, batch_seconds, size, count, accumulate, self.how.epochs)

    def _models(self) -> Iterable[Source]:
        return (self.ingredients.sources[name] for name in self.ingredients.models)

    def _key(self) -> str | None:
        """What makes two searches the same; None where nobody can tell."""
        content = self.learner.content
        if content is None or self.running.cache is None:
            return None
        models = [content_of(source, self.running.results) for source in self._models()]
        same = {name: value for name, value in asdict(self.ingredients.correspondence).items() if name != "dtype"}
        return content_key({"learned": models, "task": content, "how": asdict(self.how), "same": same})

    def _state(self) -> bytes:
        out = io.BytesIO()
        content = {
            "raw": self.raw.detach(), "temperature": self.temperature.detach(), "accumulate": self.accumulate,
            "losses": torch.tensor(self.losses, dtype=torch.float64), "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        torch.save(content, out)
        return out.getvalue()

    def _restore(self, state: bytes | None) -> int:
        """Take over what an earlier run has left; returns its steps."""
        if state is None:
            return 0
        found: Mapping[str, Any] = torch.load(io.BytesIO(state), weights_only=True)
        with torch.no_grad():
            self.raw.copy_(found["raw"])
            self.temperature.copy_(found["temperature"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.losses = found["losses"].tolist()
        self.accumulate = found["accumulate"]
        return len(self.losses)
