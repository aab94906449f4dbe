"""A merge from plan to finished output, and its result."""

from __future__ import annotations

import datetime as dt
import json
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stockpot import errors
from stockpot.adapters import Loss
from stockpot.checkpoint import (
    Staging,
    blank_seal,
    header_bytes,
    pack_file,
    partial_of,
    repair,
    require_free,
    require_outside,
    require_readable,
    seal_header,
    weight_metadata,
)
from stockpot.engine import _provenance as prov
from stockpot.engine._align import Decision
from stockpot.engine._budget import rule_of
from stockpot.engine._execute import Progress, Run, execute, solve
from stockpot.engine._fetch import fetched, require_room_to_download
from stockpot.engine._plan import Plan, disk_free, disk_needed, provenance_reserve
from stockpot.engine._records import RatioSummary, Records, summarize
from stockpot.engine._schedule import make_tasks
from stockpot.engine._side_files import side_files
from stockpot.engine._sinks import GEOMETRY, StagingSink, geometry_specs
from stockpot.engine._small_files import copied_files, made_files, record_adapters
from stockpot.engine._sums import SUMS, sums
from stockpot.engine._survey import survey


@dataclass(frozen=True)
class MergeResult:
    """What a merge did. ``seconds`` counts from the plan; ``bytes_read`` what this run read (less when resumed)."""

    out: Path
    method: str
    tensors: int
    bytes_read: int
    bytes_written: int
    seconds: float
    peak_memory_bytes: int
    ratio: RatioSummary | None
    lost: Loss | None
    decisions: tuple[Decision, ...]
    warnings: tuple[str, ...]
    resumed: int

    def record(self) -> dict[str, object]:
        """The result as data, for ``--json``."""
        return {
            "out": str(self.out),
            "method": self.method,
            "tensors": self.tensors,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "seconds": round(self.seconds, 3),
            "peak_memory_bytes": self.peak_memory_bytes,
            "ratio": self.ratio.data() if self.ratio else None,
            **({"lost": self.lost.data()} if self.lost is not None else {}),
            "decisions": [{"tensor": d.tensor, "policy": d.policy, "action": d.action} for d in self.decisions],
            "resumed_tensors": self.resumed,
        }


def check_output(plan: Plan, *, overwrite: bool, dry_run: bool = False) -> None:
    """OUT may be written and fits the disk; nothing is created yet."""
    require_outside(plan.out, [root for checkpoint in plan.inputs.given.checkpoints for root in checkpoint.roots])
    if not dry_run:
        repair(plan.out)
    require_free(plan.out, overwrite, plan.is_one_file)
    if not plan.is_one_file:
        for path in side_files(plan.template).values():
            require_readable(path)
    if not partial_of(plan.out).exists():
        _require_room(plan, disk_needed(plan))
    require_room_to_download(plan)


def check_outputs(plans: Sequence[Plan], *, overwrite: bool, dry_run: bool = False) -> None:
    """All that merges of one another's results will write may be written, and fits the disk together; the result's plan
    is the last. Parts that are there already, and are reused or replaced by themselves, are not counted."""
    *parts, result = plans
    check_output(result, overwrite=overwrite, dry_run=dry_run)
    for plan in parts:
        check_output(plan, overwrite=True, dry_run=dry_run)
    new = [plan for plan in parts if not plan.out.exists()] + [result]
    _require_room(result, sum(disk_needed(plan) for plan in new if not partial_of(plan.out).exists()))


def _require_room(plan: Plan, needed: int) -> None:
    if needed > (free := disk_free(plan.out)):
        raise errors.NoSpaceError(
            "the disk has too little room", file=str(plan.out), expected=f"{needed} bytes free", got=f"{free}",
            remedy="free some space, or choose another --out",
        )  # fmt: skip


def write(plan: Plan, *, overwrite: bool = False, resume: bool = True, progress: Progress | None = None) -> MergeResult:
    """Carry out a plan: OUT is written whole or not at all; an interrupted run of the same job is continued."""
    started = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
    clock = time.perf_counter()
    check_output(plan, overwrite=overwrite)
    if (here := fetched(plan)) is not plan:
        plan = here
        check_output(plan, overwrite=overwrite)  # of side files, sizes and rights are known only now
    staging = Staging(plan.out, plan.key, resume=resume, overwrite=overwrite)
    try:
        records = Records()
        run, resumed = _resume(plan, staging, _create_files(plan, staging), records)
        survey(run, run.sink, whole=True, progress=progress)
        execute(run, progress)
        _finish(plan, staging, records, run, clock, started)
    except errors.InputError:
        staging.discard()
        raise
    except BaseException:
        staging.keep()
        raise
    return MergeResult(
        plan.out,
        plan.job.method.name,
        len(plan.slots),
        run.bytes_read,
        plan.bytes_written,
        time.perf_counter() - clock,
        peak_memory(),
        summarize(records.groups),
        prov.rank_loss(plan),
        plan.alignment.decisions,
        plan.warnings,
        resumed,
    )


def peak_memory() -> int:
    """Peak resident bytes of this process so far (the kernel's own mark; ``ru_maxrss`` is inherited by a child)."""
    try:
        status = Path("/proc/self/status").read_text("ascii", errors="replace")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


_NO_GRAM = np.zeros(())


def _create_files(plan: Plan, staging: Staging) -> StagingSink:
    places: dict[str, tuple[str, int]] = {}
    for file in plan.layout.files:
        if plan.is_pickled:
            offsets: Mapping[str, int] = staging.create_pickle(file.name, plan.specs, plan.alignment.aliases)
        else:
            staging.create(file.name, file.size, file.header)
            offsets = file.offsets
        places.update({name: (file.name, offset) for name, offset in offsets.items()})
    if plan.beside is not None:
        staging.create(plan.beside.name, plan.beside.size, plan.beside.header)
    specs = geometry_specs(plan)
    if not specs:
        return StagingSink(staging, places, None, plan.beside)
    geometry = pack_file(GEOMETRY, specs, {"format": "stockpot gram, upper triangle"})
    staging.create(GEOMETRY, geometry.size, geometry.header)
    return StagingSink(staging, places, geometry)


def _resume(plan: Plan, staging: Staging, sink: StagingSink, records: Records) -> tuple[Run, int]:
    """The run of what is left to do; records of an earlier run are taken over."""
    done: dict[str, str] = {}
    measured: set[str] = set()
    for record in staging.finished:
        if "tensor" in record:
            done[record["tensor"]] = record["digest"]
        elif "gram" in record:
            measured.add(record["gram"])
    tasks = make_tasks(plan, frozenset(done), frozenset(measured))
    run = Run(plan, tasks, sink, records)
    for name, digest in done.items():
        records.add_digest(name, digest)
    for number, group in enumerate(plan.groups):
        finished = all(plan.slots[n].name in done for n in group.slots)
        if plan.job.method.is_elementwise:
            if finished:
                slot = plan.slots[group.slots[0]]
                records.add_facts(group, rule_of(plan.job, plan.values_of(slot), slot).facts())
        elif not plan.job.method.uses_gram:
            if finished:
                records.add(group, solve(plan, group, _NO_GRAM))
        elif group.name in measured and (finished or not group.rows):
            run.preset(number, sink.read_gram(group, len(plan.slots[group.slots[0]].sources)))
            if group.rows:
                records.finish_rows(group)
    return run, len(done)


def _finish(plan: Plan, staging: Staging, records: Records, run: Run, clock: float, started: str) -> None:
    """Provenance, side files, last checks of the inputs, and the rename."""
    staging.flush()
    changed = [file.path for c in plan.inputs.given.checkpoints for file in c.files if not file.is_current()]
    if changed:
        raise errors.InputChangedError(
            "an input was changed while it was merged; nothing was finished", file=changed[0], remedy="run it again"
        )
    record_adapters(plan, records)
    content = prov.provenance(plan, records)
    if plan.is_one_file:
        _finish_one_file(plan, staging, content)
        return
    copied = {name: staging.copy_file(name, path) for name, path in copied_files(plan).items()}
    small = made_files(plan, records, content)
    small[prov.RUN] = prov.as_json(
        prov.run_record(plan, time.perf_counter() - clock, run.bytes_read, peak_memory(), started)
    )
    hashed = dict(small)
    if any(specs := geometry_specs(plan)):
        geometry = pack_file(GEOMETRY, specs, {"format": "stockpot gram, upper triangle"})
        hashed[GEOMETRY] = staging.read(GEOMETRY, 0, geometry.size)
    if plan.beside is not None:
        copied[plan.beside.name] = staging.sum_of(plan.beside.name)
    small[SUMS] = sums(hashed, copied)
    for name, data in small.items():
        staging.add_file(name, data)
    staging.commit()


def _finish_one_file(plan: Plan, staging: Staging, content: Mapping[str, object]) -> None:
    """Provenance into the header's reserved room."""
    (file,) = plan.layout.files
    text = json.dumps(content)
    if plan.is_pickled:
        staging.seal_pickle(file.name, text.encode())
        staging.commit(one_file=file.name)
        return
    metadata = {
        **weight_metadata(plan.template, plan.template.parts[0], plan.alignment.aliases),
        **blank_seal(),
        "stockpot": text,
    }
    reserve = provenance_reserve(plan.job, plan.inputs, plan.alignment, plan.story, plan.lineage)
    header = seal_header(header_bytes(plan.specs, metadata, reserve))
    if len(header) != len(file.header):
        raise errors.RunError("the provenance does not fit the header", file=str(plan.out), got=f"{len(header)} bytes")
    staging.write(file.name, 0, memoryview(header))
    staging.commit(one_file=file.name)
