"""Inputs from a model hub, brought here when it is settled what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stockpot import errors
from stockpot.checkpoint import Source, cache_folder, together
from stockpot.engine._plan import Plan, disk_free, disk_needed


def require_room_to_download(plan: Plan) -> None:
    """What is to be downloaded fits the cache's disk, and OUT beside it where both are on one."""
    size = plan.bytes_to_download
    if size and _device(cache_folder()) == _device(plan.out):
        size += disk_needed(plan)
    _require_room(size if plan.bytes_to_download else 0)


def _require_room(size: int) -> None:
    if size and size > (free := disk_free(cache_folder() / "models")):
        raise errors.NoSpaceError(
            "the disk has too little room for the download", file=str(cache_folder()), expected=f"{size} bytes free",
            got=free, remedy="free some space, or put the cache elsewhere with HF_HOME",
        )  # fmt: skip


def _device(path: Path) -> int:
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return place.stat().st_dev


def fetched(plan: Plan, *, side_files: bool = True) -> Plan:
    """The plan with its inputs and the template's side files on this machine. Cost: a download of what is not."""
    template = plan.alignment.template
    before = plan.inputs.checkpoints
    _require_room(plan.bytes_to_download)
    if (merged := plan.inputs.adapters) is not None:
        here, given = merged.fetched(side_files=side_files), plan.inputs.given
        if here is merged:
            return plan
        originals = replace(given, checkpoints=(*given.checkpoints[: given.first_model], *here.sources))
        return replace(plan, inputs=replace(plan.inputs, checkpoints=(here,), adapters=here, originals=originals))
    after = tuple(source.fetched(side_files=side_files and n == template) for n, source in enumerate(before))
    if all(one is other for one, other in zip(before, after, strict=True)):
        return plan
    return replace(plan, inputs=replace(plan.inputs, checkpoints=after))


def fetched_sources(sources: Mapping[str, Source]) -> dict[str, Source]:
    """All of them on this machine, each with its side files."""
    _require_room(sum(together(source.downloads(side_files=True) for source in sources.values()).values()))
    return {name: source.fetched() for name, source in sources.items()}
