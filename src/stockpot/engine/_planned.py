"""The result of a merge that is not made yet, as a source: what its headers will say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stockpot import errors
from stockpot.checkpoint import FileIdentity, Part, Source, TensorInfo, View, nbytes
from stockpot.engine._plan import Plan
from stockpot.engine._stacked_config import stacked_config


@dataclass(frozen=True)
class PlannedSource:
    """A source without files. Its tensors can be aligned; what is copied unchanged can be read where it comes from."""

    ref: str
    plan: Plan
    tensors: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]
    parts: tuple[Part, ...]
    roots: tuple[Path, ...] = ()
    files: tuple[FileIdentity, ...] = ()
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    is_pickle: bool = False
    commit: str = ""
    working_bytes: int = 0

    @classmethod
    def of(cls, plan: Plan) -> PlannedSource:
        """What a plan will have made."""
        slots = enumerate(plan.slots)
        tensors = {
            slot.name: TensorInfo(slot.name, slot.dtype, slot.shape, 0, number, nbytes(slot.dtype, slot.shape))
            for number, slot in slots
        }
        aliases = {alias: name for alias, name in plan.alignment.aliases.items() if name in tensors}
        parts = tuple(_part(plan, part) for part in plan.template.parts)
        # Its side files will be the template's, but for a tokenizer that is made anew.
        folder = plan.template.folder if plan.inputs.vocabulary is None else None
        return cls(str(plan.out), plan, tensors, aliases, parts, folder=folder)

    def downloads(self, *, side_files: bool) -> Mapping[str, int]:
        """None: the plan's own are counted where it is carried out."""
        return {}

    def fetched(self, *, side_files: bool = True) -> Source:
        """Itself: it cannot be had before it is made."""
        return self

    def read_into(self, info: TensorInfo, start: int, out: memoryview) -> None:
        """Bytes of a tensor that is copied; UsageError for one that is not made yet."""
        slot = self.plan.slots[info.offset]
        number, source = slot.sources[0]
        if slot.action == "merge" or source.dtype != slot.dtype:
            raise errors.UsageError("what it holds is not made yet", tensor=info.name, file=self.ref)
        self.plan.inputs.checkpoints[number].read_into(source, start, out)

    def view(self, info: TensorInfo, start: int, size: int) -> View | None:
        """Nowhere."""
        return None

    def close(self) -> None:
        """Nothing is open."""

    def drop_views(self, infos: Sequence[TensorInfo]) -> None:
        """Nothing was viewed."""


def _part(plan: Plan, part: Part) -> Part:
    """A part of the template with the configuration that it will have."""
    content = json.dumps(part.config).encode()
    for stack in plan.alignment.stacks:
        configs = {number: source.parts[0].config for number, source in enumerate(plan.inputs.checkpoints)}
        content = stacked_config(content, stack, plan.alignment.template, configs)
    return replace(part, config=json.loads(content))
