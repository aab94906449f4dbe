"""Replicas that one process trains one after another: one in the model, the others parked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn, optim

from stockpot import engine, errors
from stockpot.adapters import open_source
from stockpot.checkpoint import Source
from stockpot.engine import MemorySource
from stockpot.train._merging import Merge, Merger, Options
from stockpot.train._optimizers import AfterMerge, State, after_merge
from stockpot.train._schedule import Unit
from stockpot.train._weights import Weights, aliases, copied, is_sharded, on_cpu, put_back, trained


class Stateful(Protocol):
    """A learning-rate schedule, a gradient scaler: what goes on with a replica."""

    def state_dict(self) -> dict[str, Any]:
        """All that it needs to go on."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Go on from there."""


class InTurn:
    """N replicas of one model in one process: each is trained up to the next merge, then the next one is.

    The replica whose turn it is lives in ``model``, ``optimizer`` and ``extras`` (learning-rate schedules, gradient
    scalers: whatever has a ``state_dict``); the weights of those that wait for the merge are parked in memory (``cpu``)
    or in a folder. Frozen parameters are the same in all and stay where they are. Randomness is yours: give each
    replica its own order of data, by ``replica`` of the PeriodicStock.

    Cost: memory for N - 1 parked models (none in a folder), N optimizer states, and the merged weights; a copy of the
    weights for each change of turns.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer | Sequence[optim.Optimizer] = (),
        *,
        count: int,
        extras: Sequence[Stateful] = (),
        park: str | Path = "cpu",
    ) -> None:
        if not isinstance(count, int) or count < 2:
            raise errors.ParameterError(
                "Model Stock needs replicas to compare", expected="at least 2", got=count,
                remedy="averages of one run are EMA, SWA and LAWA",
            )  # fmt: skip
        if is_sharded(model):
            raise errors.UsageError(
                "replicas trained in turn must be whole in each process, and this model is sharded (FSDP2)",
                remedy="train them side by side: SideBySide",
            )  # fmt: skip
        self.model, self.count, self.current = model, count, 0
        self._optimizers = [optimizer] if isinstance(optimizer, optim.Optimizer) else list(optimizer)
        self._extras = list(extras)
        self._folder = None if park == "cpu" else Path(park)
        self._parked: dict[int, Weights] = {}
        self._anchor: Weights | None = None
        self._merger: Merger
        self._start: Weights = copied(trained(model))
        self._states = [self._own_states() for _ in range(count)]

    def weights(self) -> Weights:
        """Of the replica whose turn it is: the model's own tensors."""
        return trained(self.model)

    def begin(self, anchor: Mapping[str, Tensor] | str | Path | None, options: Options) -> None:
        """Settle the anchor, and refuse now what a merge would refuse for names, shapes or options."""
        weights = self.weights()
        if isinstance(anchor, (str, Path)):
            self._merger = Merger(open_source(anchor), options)
        else:
            given = weights if anchor is None else anchor
            self._keep_anchor({name: tensor for name, tensor in given.items() if name in weights}, options)
        self._merger.check([MemorySource(weights, "replica")] * self.count)
        if self._merger.anchor.commit:
            self._merger = Merger(self._merger.anchor.fetched(side_files=False), options)

    def _keep_anchor(self, weights: Mapping[str, Tensor], options: Options) -> None:
        self._anchor = copied(weights)
        self._merger = Merger(MemorySource(self._anchor, "anchor"), options)

    def next(self) -> bool:
        """The current replica has reached a merge. True if it was the last; else the next one is in the model now."""
        self._states[self.current] = self._own_states()
        if self.current == self.count - 1:
            return True
        self._park(self.current, self.weights())
        self._enter(self.current + 1)
        return False

    def merge(self, at: int, unit: Unit, optimizer_state: AfterMerge) -> Merge:
        """When the last one has reached the merge: all replicas go on from the merged weights, the first one first."""
        parked = [self._source(number) for number in range(self.count - 1)]
        sources = [*parked, MemorySource(self.weights(), f"replica {self.count - 1}")]
        merged, geometry = self._merger.merge(sources)
        self._start = dict(merged)
        for place in range(len(self._optimizers)):
            states = after_merge([own[place] for own in self._states], optimizer_state)
            for own, state in zip(self._states, states, strict=True):
                own[place] = state
        self._enter(0)
        return Merge(at, unit, self._merger.options.ratios(geometry), geometry)

    def state_dict(self) -> dict[str, Any]:
        """Whose turn it is, where the turns began, what is parked; not the model and its optimizers."""
        parked = {number: self._parked_weights(number) for number in range(self.current)}
        return {
            "current": self.current,
            "start": self._start,
            "parked": parked,
            "states": self._states,
            "anchor": self._anchor,
            "anchor_digest": self._anchor_digest(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. The model, its optimizers and the extras are yours to load."""
        if len(state["states"]) != self.count:
            raise errors.ParameterError(
                "the saved run has another number of replicas", expected=self.count, got=len(state["states"])
            )
        if state["anchor"] is not None:
            self._keep_anchor(state["anchor"], self._merger.options)
        if self._anchor_digest() != state["anchor_digest"]:
            raise errors.ParameterError(
                "the anchor is not the one that the run began with", remedy="give the pre-trained weights of that run"
            )
        self.current = int(state["current"])
        self._start = copied(state["start"])
        self._states = [[on_cpu(one) for one in own] for own in state["states"]]
        for number, weights in state["parked"].items():
            self._park(int(number), weights)

    def _anchor_digest(self) -> str:
        """Of its content. Cost: reading it once."""
        if self._anchor is not None:
            return engine.memory_digest(self._merger.anchor)
        return "+".join(engine.file_digest(file.path) for file in self._merger.anchor.files)

    def _enter(self, number: int) -> None:
        self.current = number
        put_back(self._start, self.model)
        for one, state in zip([*self._optimizers, *self._extras], self._states[number], strict=True):
            one.load_state_dict(on_cpu(state))  # a copy: some keep what they are given

    def _own_states(self) -> list[State]:
        return [on_cpu(one.state_dict()) for one in [*self._optimizers, *self._extras]]

    def _park(self, number: int, weights: Mapping[str, Tensor]) -> None:
        if self._folder is None:
            self._parked[number] = copied(weights, self._parked.get(number))
            return
        from safetensors.torch import save_file

        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(number)
        try:
            # The file may be mapped still, from the merge before: a new one takes its name.
            same = aliases(weights)
            kept = {name: tensor for name, tensor in copied(weights).items() if name not in same}
            save_file(kept, path.with_suffix(".tmp"), metadata=same)
            path.with_suffix(".tmp").replace(path)
        except OSError as error:
            raise errors.RunError(f"a replica cannot be parked ({error.strerror or error})", file=str(path)) from error

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"replica-{number}.safetensors"

    def _source(self, number: int) -> Source:
        if self._folder is None:
            return MemorySource(self._parked[number], f"replica {number}")
        return open_source(self._path(number))

    def _parked_weights(self, number: int) -> Weights:
        if self._folder is None:
            return self._parked[number]
        from safetensors.torch import load_file

        found = dict(load_file(self._path(number)))
        return found | {name: found[first] for name, first in aliases(self._start).items()}
