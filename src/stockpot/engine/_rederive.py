"""Derive an output anew from its recorded inputs, and compare."""

from __future__ import annotations

import importlib.metadata
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import xxhash

from stockpot import errors
from stockpot._version import __version__
from stockpot.adapters import open_source
from stockpot.checkpoint import Source, current_commit, hub_ids, open_local, read_dense
from stockpot.engine._align import Inputs
from stockpot.engine._device import choose_device
from stockpot.engine._execute import Run, execute
from stockpot.engine._fetch import fetched
from stockpot.engine._job import Job, resolve
from stockpot.engine._plan import Plan, Story, make_plan, open_inputs
from stockpot.engine._provenance import CARD, PROVENANCE, RUN, as_json, provenance
from stockpot.engine._records import Records
from stockpot.engine._schedule import Task, make_tasks
from stockpot.engine._sinks import GEOMETRY, CollectingSink, ComparingSink
from stockpot.engine._small_files import copied_files, made_files, record_adapters
from stockpot.engine._sums import SUMS, file_sum, read_sums
from stockpot.engine._survey import survey
from stockpot.engine._verify_folder import Record, differing_groups
from stockpot.measure import pack
from stockpot.recipe import Recipe

DEFAULT_MEMORY = 192 << 20


def _at_commits(record: Record, notes: list[str]) -> dict[str, Source]:
    """Inputs from a hub at the commits that were merged; a revision that means another one by now is noted."""
    found: dict[str, Source] = {}
    for said in record.inputs:
        if not said.commit or said.ref in found:
            continue
        found[said.ref] = open_source(said.ref, commit=said.commit)
        for ref, commit in hub_ids(said.ref, said.commit):
            try:
                now = current_commit(ref)
            except errors.CheckpointError as error:
                notes.append(f"{ref}: it is not known what it means now ({error.what})")
                continue
            if now != commit:
                notes.append(f"{ref}: means commit {now[:12]} by now; {commit[:12]} was merged, and is compared")
    return found


def rederive(path: Path, record: Record, fraction: float, problems: list[str], notes: list[str]) -> int:
    """Derive a sample of the tensors, by the recorded recipe from the recorded inputs, and compare; of all of them,
    every small file that follows from the inputs too. Returns how many tensors it were."""
    job = resolve(Recipe.from_data(record.recipe, f"{path}/{PROVENANCE}"))
    inputs = _opened(job, record, notes)
    given = inputs.given.checkpoints
    if len(given) != len(record.inputs):
        problems.append(f"{PROVENANCE}: {len(record.inputs)} inputs, but its recipe has {len(given)}")
        return 0
    for checkpoint, said in zip(given, record.inputs, strict=True):
        found = [(Path(f.path).name, f.size, f.header_digest) for f in checkpoint.files]
        if found != [(f.name, f.bytes, f.header_xxh3) for f in said.files]:
            problems.append(f"input {checkpoint.ref}: not the files that were merged")
            return 0
    is_whole = fraction == 1.0
    story = Story(record.chosen, ()) if record.chosen is not None else None
    plan = make_plan(
        job,
        inputs,
        path,
        memory=DEFAULT_MEMORY,
        workers=None,
        device=_device(record),
        story=story,
        lineage=record.made_from,
    )
    if not _same_tensors(plan, record, problems):
        return 0
    plan = fetched(plan, side_files=is_whole)
    tasks, names = _sample(plan, fraction)
    records = Records()
    sink = CollectingSink()
    run = Run(plan, tasks, sink, records)
    compared = ComparingSink(path, plan.beside)
    survey(run, compared, whole=is_whole)
    execute(run)
    record_adapters(plan, records)
    differing = [name for name in names if records.digests[name] != record.tensors[name].xxh3]
    wrong = [f"tensor {name}: computed anew, its bytes differ" for name in differing]
    wrong += differing_groups(records, record, "computed anew, its coefficients differ")
    wrong += _differing_grams(path / GEOMETRY, plan, sink)
    wrong += [f"{name}: made anew, its bytes differ" for name in compared.differing]
    if is_whole:
        wrong += _differing_files(path, plan, records, record)
    if wrong:
        problems += _made_elsewhere(record) + _written_since(path, given)
    problems += wrong
    return len(names)


def _opened(job: Job, record: Record, notes: list[str]) -> Inputs:
    # Looked for before anybody is asked for them by these names.
    if gone := [ref for ref in record.made_from or () if not Path(ref).exists()]:
        raise errors.NotFoundError(
            "an input that was made for this merge is gone", file=", ".join(gone),
            remedy="run the same recipe again, which makes it, to another --out",
        )  # fmt: skip
    return open_inputs(job, _at_commits(record, notes), adapters=True)


def _device(record: Record) -> str:
    try:
        return choose_device(record.device)
    except errors.UsageError:
        raise errors.UsageError(
            "it was merged on another kind of device, whose bits cannot be derived here", got=record.device,
            remedy="leave --recompute out, or verify it there",
        ) from None  # fmt: skip


def _differing_grams(file: Path, plan: Plan, sink: CollectingSink) -> Iterator[str]:
    """Inner products that are not those stored, among the groups that were measured."""
    if not file.exists():
        return
    source = open_local(GEOMETRY, file)
    for group in plan.groups:
        if group.name in sink.found or group.name in sink.rows:
            expected = pack(sink.of(group)).tobytes()
            info = source.tensors.get(group.name)
            if info is None or bytes(read_dense(source, info)) != expected:
                yield f"{GEOMETRY}: tensor {group.name}: measured anew, its inner products differ"


def _made_elsewhere(record: Record) -> list[str]:
    """Said where bits differ and versions do too: they may be to blame."""
    here = (__version__, importlib.metadata.version("torch"))
    if (record.stockpot, record.torch) == here:
        return []
    return [f"made by stockpot {record.stockpot} with torch {record.torch}, compared by {here[0]} with torch {here[1]}"]


def _same_tensors(plan: Plan, record: Record, problems: list[str]) -> bool:
    """Whether the recipe makes the tensors, and the files, that there are."""
    planned = {slot.name: slot.dtype for slot in plan.slots}
    recorded = {name: said.dtype for name, said in record.tensors.items()}
    problems += [
        f"tensor {name}: {PROVENANCE} has {recorded.get(name)}, its recipe makes {planned.get(name)}"
        for name in sorted(planned.keys() | recorded.keys())
        if planned.get(name) != recorded.get(name)
    ]
    files = [] if plan.is_one_file else plan.layout.files
    made = [(file.name, file.size, xxhash.xxh3_128_hexdigest(file.header)) for file in files]
    if made != [(file.name, file.bytes, file.header_xxh3) for file in record.files]:
        problems.append(f"{PROVENANCE}: not the files of weights that its recipe makes")
    return not problems


def _differing_files(path: Path, plan: Plan, records: Records, record: Record) -> Iterator[str]:
    """Small files that are not what the inputs give; versions aside, and what tells of evaluations."""
    content = {**provenance(plan, records), "stockpot": record.stockpot, "torch": record.torch}
    if plan.is_one_file:
        if record.model_dump(exclude_unset=True) != json.loads(as_json(content)):
            yield f"{path.name}: computed anew, its provenance differs"
        return
    made = made_files(plan, records, content)
    if record.chosen is not None or record.stockpot != __version__:
        del made[CARD]
    for name, expected in made.items():
        if not (path / name).is_file() or (path / name).read_bytes() != expected:
            yield f"{name}: made anew, its bytes differ"
    for name, source in copied_files(plan).items():
        if not (path / name).is_file() or file_sum(path / name) != file_sum(source):
            yield f"{name}: not the one of {plan.template.ref}"
    known = {*made, *copied_files(plan), CARD, RUN, GEOMETRY, *([plan.beside.name] if plan.beside is not None else [])}
    listed, _ = read_sums((path / SUMS).read_bytes())
    yield from (f"{name}: nothing that the inputs give" for name in listed if name not in known)


def _written_since(path: Path, given: Sequence[Source]) -> list[str]:
    """Files of inputs with another time than when they were merged, where that was recorded: they may be to blame."""
    try:
        recorded = json.loads((path / RUN).read_text("utf-8"))["inputs"]
        times = {file["path"]: file["mtime_ns"] for files in recorded for file in files}
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [
        f"input {source.ref}: {file.path} was written since the merge"
        for source in given
        for file in source.files
        if times.get(file.path, file.mtime_ns) != file.mtime_ns
    ]


def _sample(plan: Plan, fraction: float) -> tuple[list[Task], list[str]]:
    """Tasks and tensors of a seeded sample of groups; a tensor without a group counts as one."""
    grouped = {number for group in plan.groups for number in group.slots}
    units = [group.slots for group in plan.groups] + [(n,) for n in range(len(plan.slots)) if n not in grouped]
    chosen = random.Random(plan.key).sample(units, max(1, round(fraction * len(units)))) if units else []
    # Groups are kept whole, so that sums are added as in the merge.
    names = {plan.slots[number].name for unit in chosen for number in unit}
    others = frozenset(slot.name for slot in plan.slots) - names
    return make_tasks(plan, others, frozenset()), [slot.name for slot in plan.slots if slot.name in names]
