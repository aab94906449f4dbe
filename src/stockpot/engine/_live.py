"""One state dict in memory that becomes one mixture of checkpoints after another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from stockpot.checkpoint import Source
from stockpot.engine._job import resolve
from stockpot.engine._memory import MemorySink, to_memory
from stockpot.engine._plan import Plan, Story, make_plan, open_inputs, with_links_told
from stockpot.recipe import Recipe


class LiveModel:
    """Checkpoints opened once; mixtures of them are built in the same tensors, to the bytes that ``merge`` writes.

    The ingredients stay on disk and are read block by block: memory is one model and the buffers, whatever their
    number.
    """

    def __init__(self, sources: Mapping[str, Source], *, memory: int, workers: int | None, device: str) -> None:
        """``sources``: by the names that recipes use; ``memory`` bounds the buffers, in bytes."""
        self.sources = sources
        self.bytes_read = 0
        self._memory, self._workers, self._device = memory, workers, device
        self._sink = MemorySink()

    def plan(self, recipe: Recipe, out: Path | None = None, story: Story | None = None) -> Plan:
        """How the recipe's mixture is made, from headers; ``out``: on disk instead of here, with its ``story``."""
        job = resolve(recipe)
        where = out or Path("memory")
        inputs = open_inputs(job, self.sources)
        made = make_plan(
            job, inputs, where, memory=self._memory, workers=self._workers, device=self._device, story=story
        )
        return made if out is None else with_links_told(made)

    def become(self, plan: Plan) -> dict[str, Tensor]:
        """The mixture as a state dict. Its tensors are the model's own: the next mixture is written over them."""
        found, _ = to_memory(plan, self._sink)
        self.bytes_read += plan.bytes_read
        return found
