"""Averages of one run's weights: moving, running, and of the last few checkpoints."""

from __future__ import annotations

import contextlib
import itertools
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from stockpot import errors
from stockpot.train._batch_norm import reestimate_batch_norm
from stockpot.train._merging import combined
from stockpot.train._weights import Weights, copied, put_back, trained

Decay = Literal["linear", "cosine", "minus_sqrt"]


class Average(ABC):
    """An average of a model's weights over its training. Call ``update`` after the optimizer's steps that count.

    Each process averages what it holds: whole weights, replicated ones (DDP), or its shards (FSDP2, ``fully_shard``);
    nothing is sent. Frozen parameters and integers are left alone; BatchNorm's running means are averaged too, or
    estimated anew in ``swap``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.count = 0
        self._own: Weights | None = None

    def update(self) -> None:
        """Take the model's weights as they are now into the average. Cost: one read of them.

        Raises UsageError while the average itself is swapped in.
        """
        if self.is_swapped_in:
            raise errors.UsageError("the model holds the average now, not what was trained", remedy="swap out first")
        self.count += 1
        self._take(_floating(self.model))

    def weights(self) -> Weights:
        """The average in the model's own dtypes, rounded once. Raises UsageError before the first ``update``."""
        if not self.count:
            raise errors.UsageError("nothing was averaged yet", remedy="call update() first")
        return self._mean()

    @contextlib.contextmanager
    def swap(self, batches: Iterable[Any] | None = None) -> Iterator[nn.Module]:
        """The model with the averaged weights, for evaluation; its own come back in any case.

        ``batches``: training data to estimate BatchNorm's statistics from, for the averaged weights.
        Cost: a copy of the weights, kept meanwhile.
        """
        self.swap_in(batches)
        try:
            yield self.model
        finally:
            self.swap_out()

    def swap_in(self, batches: Iterable[Any] | None = None) -> None:
        """As ``swap``, until ``swap_out``: for frameworks that call back. Nothing where it is swapped in already."""
        if self.is_swapped_in:
            return
        mean = self.weights()
        self._own = {name: tensor.clone() for name, tensor in trained(self.model).items()}
        try:
            put_back(mean, self.model)
            if batches is not None:
                reestimate_batch_norm(self.model, batches)
        except BaseException:
            self.swap_out()
            raise

    @property
    def is_swapped_in(self) -> bool:
        """Whether the model holds the average now, and its own weights are kept aside."""
        return self._own is not None

    def swap_out(self) -> None:
        """The model's own weights come back; nothing where they are there."""
        own, self._own = self._own, None
        if own is not None:
            put_back(own, self.model)

    def settle(self, batches: Iterable[Any] | None = None) -> None:
        """Training is over: the model keeps the averaged weights."""
        self.swap_in(batches)
        self._own = None

    def state_dict(self) -> dict[str, Any]:
        """All that a killed run needs to go on averaging; while swapped in, the model's own weights too."""
        return {"count": self.count, "own": self._own, **self._sums()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. If it was saved while swapped in, the model gets its own weights back.

        Raises UsageError for what another kind of average saved.
        """
        if state.keys() != (own := self.state_dict()).keys():
            raise errors.UsageError(
                f"no state of {type(self).__name__}", expected=", ".join(sorted(own)),
                got=", ".join(sorted(map(str, state))),
            )  # fmt: skip
        self.count, self._own = state["count"], None
        self._load_sums(state)
        if state["own"] is not None:
            put_back(state["own"], self.model)

    @abstractmethod
    def _sums(self) -> dict[str, Any]:
        """What the average is made of."""

    @abstractmethod
    def _load_sums(self, state: Mapping[str, Any]) -> None:
        """The same, from a saved run."""

    @abstractmethod
    def _take(self, weights: Weights) -> None:
        """The next weights."""

    @abstractmethod
    def _mean(self) -> Weights:
        """The average."""


class EMA(Average):
    """Exponential moving average: a <- d a + (1 - d) w.

    ``decay``: d, from 0 to below 1; about the last 1 / (1 - d) updates count. ``warm_up``: after n updates
    d = min(decay, (1 + n) / (10 + n)), so that a young average follows.
    Kept in float64 for weights of 32 bits, in float32 for narrower ones: what is added is far smaller than the average.
    Cost: twice the weights' memory; no communication.

    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 0.0)
    >>> average = EMA(model, decay=0.75)
    >>> average.update()
    >>> _ = torch.nn.init.constant_(model.weight, 1.0)
    >>> average.update()
    >>> with average.swap():
    ...     model.weight.item()
    0.25
    >>> model.weight.item()
    1.0
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, *, warm_up: bool = False) -> None:
        super().__init__(model)
        if not 0.0 <= decay < 1.0:
            raise errors.ParameterError("decay of a moving average", expected="from 0 to below 1", got=decay)
        self.decay, self.warm_up = decay, warm_up
        self._wide: Weights = {}

    def _sums(self) -> dict[str, Any]:
        return {"wide": self._wide}

    def _load_sums(self, state: Mapping[str, Any]) -> None:
        self._wide = _like(state["wide"], _floating(self.model))

    def _take(self, weights: Weights) -> None:
        if self.count == 1:
            self._wide = {name: _widened(tensor, copy=True) for name, tensor in weights.items()}
            return
        done = self.count - 1
        decay = min(self.decay, (1 + done) / (10 + done)) if self.warm_up else self.decay
        for name, tensor in weights.items():
            self._wide[name].lerp_(_widened(tensor), 1.0 - decay)

    def _mean(self) -> Weights:
        return {name: self._wide[name].to(tensor.dtype) for name, tensor in _floating(self.model).items()}


class SWA(Average):
    """Stochastic weight averaging: the plain mean of all updates (Izmailov et al. 2018, arXiv 1803.05407).

    Usually of one update an epoch, at a constant or cyclic rate, over the last quarter of the run; then estimate
    BatchNorm anew. Sums are kept in float64 (float32 for 16-bit weights). Cost: twice the weights' memory.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._sum: Weights = {}

    def _sums(self) -> dict[str, Any]:
        return {"sum": self._sum}

    def _load_sums(self, state: Mapping[str, Any]) -> None:
        self._sum = _like(state["sum"], _floating(self.model))

    def _take(self, weights: Weights) -> None:
        for name, tensor in weights.items():
            if name in self._sum:
                self._sum[name] += _widened(tensor)
            else:
                self._sum[name] = _widened(tensor, copy=True)

    def _mean(self) -> Weights:
        own = _floating(self.model)
        return {name: (self._sum[name] / self.count).to(tensor.dtype) for name, tensor in own.items()}


class LAWA(Average):
    """Latest weight averaging: of the last ``last`` updates (Kaddour 2022, arXiv 2209.14981).

    ``decay``: weights of the snapshots so that the average stands for the end of a run whose rate decayed over them by
    that shape, though it never did (see ``decay_weights``); None and ``linear`` are the plain mean.
    Correctly rounded, as ``stockpot merge --method linear``. Cost: memory for the snapshots, on the CPU.
    """

    def __init__(self, model: nn.Module, last: int, *, decay: Decay | None = None) -> None:
        super().__init__(model)
        if not isinstance(last, int) or last < 1:
            raise errors.ParameterError("how many of the last weights to average", expected="at least 1", got=last)
        decay_weights(last, decay or "linear")
        self.decay = decay
        self._snapshots: deque[Weights] = deque(maxlen=last)

    def _sums(self) -> dict[str, Any]:
        return {"snapshots": list(self._snapshots)}

    def _load_sums(self, state: Mapping[str, Any]) -> None:
        self._snapshots = deque((copied(one) for one in state["snapshots"]), maxlen=self._snapshots.maxlen)

    def _take(self, weights: Weights) -> None:
        full = len(self._snapshots) == self._snapshots.maxlen
        self._snapshots.append(copied(weights, self._snapshots.popleft() if full else None))

    def _mean(self) -> Weights:
        return combined(self._snapshots, decay_weights(len(self._snapshots), self.decay or "linear"))


def decay_weights(count: int, shape: Decay) -> tuple[float, ...]:
    """Weights of ``count`` checkpoints in a row, oldest first, whose average stands for a decayed learning rate.

    Let the steps between checkpoints be D_j = w_j - w_{j-1}. Had the rate decayed over them as s(x), from 1 at x = 0 to
    0 at x = 1, the end would have been about w_0 + sum_j s(j / K) D_j, j = 1 .. K - 1 for K checkpoints: an average
    with the weights s(j/K) - s((j+1)/K). Shapes: ``linear`` 1 - x (the plain mean), ``cosine`` (1 + cos pi x) / 2,
    ``minus_sqrt`` 1 - sqrt x. They sum to 1. For files: ``stockpot merge --method linear --set weight=[...]``.
    Reference: decay-free schedules, Tian et al. 2025, arXiv 2507.17634.

    >>> decay_weights(4, "linear")
    (0.25, 0.25, 0.25, 0.25)
    >>> [round(weight, 4) for weight in decay_weights(4, "minus_sqrt")]
    [0.5, 0.2071, 0.1589, 0.134]
    """
    if shape not in get_args(Decay):
        raise errors.unknown_name("decay", shape, get_args(Decay))
    if not isinstance(count, int) or count < 1:
        raise errors.ParameterError("how many checkpoints to average", expected="at least 1", got=count)
    if shape == "linear":
        return (1.0 / count,) * count
    rates = [_rate(number / count, shape) for number in range(count + 1)]
    return tuple(before - after for before, after in itertools.pairwise(rates))


def _rate(x: float, shape: Decay) -> float:
    if x in (0.0, 1.0):
        return 1.0 - x
    return (1.0 + math.cos(math.pi * x)) / 2.0 if shape == "cosine" else 1.0 - math.sqrt(x)


def _floating(model: nn.Module) -> Weights:
    return {name: tensor for name, tensor in trained(model).items() if tensor.is_floating_point()}


def _widened(tensor: Tensor, *, copy: bool = False) -> Tensor:
    return tensor.to(torch.float32 if tensor.itemsize < 4 else torch.float64, copy=copy)


def _like(wide: Mapping[str, Tensor], weights: Weights) -> Weights:
    """Saved sums, each where the model's own tensor is."""
    return {name: tensor.to(weights[name].device, copy=True) for name, tensor in wide.items()}
