"""Prove an output: layout, digests, sums, index; on request re-derive tensors from the recorded inputs."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash
from pydantic import BaseModel, Field, ValidationError

from stockpot import errors
from stockpot.adapters import open_source
from stockpot.checkpoint import (
    Checkpoint,
    Source,
    current_commit,
    damaged_member,
    hub_ids,
    is_sealed_header,
    is_side_folder,
    is_weight_file,
    local_path,
    open_local,
    read_provenance,
)
from stockpot.engine._execute import Run, execute
from stockpot.engine._fetch import fetched
from stockpot.engine._job import resolve
from stockpot.engine._plan import Plan, make_plan, open_inputs
from stockpot.engine._provenance import PROVENANCE, RUN, SUMS
from stockpot.engine._records import Records
from stockpot.engine._schedule import Task, make_tasks
from stockpot.engine._sinks import GEOMETRY, NullSink
from stockpot.recipe import Recipe

PIECE_BYTES = 4 << 20
DEFAULT_MEMORY = 192 << 20


@dataclass(frozen=True)
class VerifyResult:
    """What was checked, and every damage found."""

    out: Path
    tensors: int
    files: int
    recomputed: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, object]:
        """The result as data, for ``--json``."""
        return {
            "out": str(self.out),
            "tensors": self.tensors,
            "files": self.files,
            "recomputed": self.recomputed,
            "problems": list(self.problems),
        }


def verify(
    out: str | Path, *, recompute: float = 0.0, progress: Callable[[int, int], None] | None = None
) -> VerifyResult:
    """Check an output of stockpot against what it says of itself.

    Arguments: ``out``, a folder or one file; ``recompute``, the fraction (0 to 1) of its groups of tensors that are
    derived anew from the recorded inputs (Hub ids at the recorded commits) and compared bit by bit. Returns what was
    checked; ``problems`` is empty if all is whole; ``notes`` says which Hub ids mean another commit by now. Raises
    CheckpointError where there is no provenance to check against, or an input is gone.
    Cost: one read of OUT; ``recompute`` times one merge.
    """
    path = local_path(out)
    if not 0.0 <= recompute <= 1.0:
        raise errors.ParameterError("--recompute is a fraction", expected="0 to 1", got=recompute)
    if not path.exists():
        raise errors.NotFoundError("no such file or folder", file=str(out), remedy="check the path")
    problems: list[str] = []
    names = _check_sums(path, problems) if path.is_dir() else 0
    try:
        record, checkpoint = _open(path)
    except errors.NotAnOutputError:
        raise
    except errors.CheckpointError as error:
        return VerifyResult(path, 0, names, 0, (*problems, error.line()))
    problems += _check_files(path, record)
    problems += _check_tensors(checkpoint, record, progress)
    notes: list[str] = []
    count = _recompute(path, record, recompute, problems, notes) if recompute > 0 and not problems else 0
    files = names + len(checkpoint.files)
    return VerifyResult(path, len(checkpoint.tensors), files, count, tuple(problems), tuple(notes))


class _FileRecord(BaseModel):
    name: str
    bytes: int
    header_xxh3: str


class _InputRecord(BaseModel):
    ref: str
    commit: str = ""
    files: list[_FileRecord]


class _TensorRecord(BaseModel):
    xxh3: str


class _Record(BaseModel):
    """What ``verify`` needs of the provenance; everything else in it is for people."""

    recipe: dict[str, Any]
    inputs: list[_InputRecord] = Field(min_length=1)
    files: list[_FileRecord]
    tensors: dict[str, _TensorRecord]


def _open(path: Path) -> tuple[_Record, Checkpoint]:
    if path.is_dir():
        text = _stated_by_folder(path)
        checkpoint = open_local(str(path), path)
    else:
        checkpoint = open_local(str(path), path)
        text = _stated_by_file(path, checkpoint)
    try:
        return _Record.model_validate_json(text), checkpoint
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise errors.CheckpointError(
            f"the provenance cannot be read ({where}: {first['msg']})", file=str(path)
        ) from None


def _stated_by_folder(path: Path) -> bytes:
    place = path / PROVENANCE
    if place.is_file():
        return place.read_bytes()
    if (path / SUMS).is_file():
        raise errors.CheckpointError("the provenance is gone", file=str(place))
    raise errors.NotAnOutputError("not an output of stockpot", file=str(path), expected=f"a {PROVENANCE} in it")


def _stated_by_file(path: Path, checkpoint: Checkpoint) -> bytes:
    stated = checkpoint.metadata.get("stockpot")
    found = read_provenance(path) if checkpoint.is_pickle else stated.encode() if stated else None
    if found is None:
        raise errors.NotAnOutputError("not an output of stockpot", file=str(path), expected="provenance inside it")
    if not checkpoint.is_pickle and not is_sealed_header(path):
        raise errors.HeaderSyntaxError("the header is not the one written", file=str(path))
    if checkpoint.is_pickle and (damaged := damaged_member(path)):
        raise errors.PickleFormatError("a member of the archive is damaged", file=str(path), tensor=damaged)
    return found


def _check_sums(path: Path, problems: list[str]) -> int:
    """The small files against SHA256SUMS."""
    place = path / SUMS
    if not place.is_file():
        if (path / PROVENANCE).is_file():
            problems.append(f"{SUMS}: missing")
        return 0
    lines = place.read_text("utf-8", errors="replace").splitlines()
    listed = {line.partition("  ")[2] for line in lines}
    found = (entry.relative_to(path) for entry in path.rglob("[!.]*") if entry.is_file() and not entry.is_symlink())
    present = {str(entry) for entry in found if all(map(is_side_folder, entry.parts[:-1]))}
    geometry = {GEOMETRY} & present
    unlisted = {name for name in present - listed - {SUMS} if not is_weight_file(name)} | (geometry - listed)
    problems += [f"{name}: not in {SUMS}" for name in sorted(unlisted)]
    for line in lines:
        digest, _, name = line.partition("  ")
        if not _is_plain(name) or len(digest) != 64:
            problems.append(f"{SUMS}: a line that cannot be read: {line[:60]!r}")
            continue
        file = path / name
        if not _is_file(file):
            problems.append(f"{name}: missing")
        elif hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            problems.append(f"{name}: its bytes are not those of {SUMS}")
    return len(lines)


def _is_plain(name: str) -> bool:
    """Whether it is the name of something in the output: what is said of it may come from anybody."""
    pure = PurePosixPath(name)
    return bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts


def _is_file(place: Path) -> bool:
    try:
        return place.is_file()
    except OSError:  # no file can have such a name
        return False


def _check_files(path: Path, record: _Record) -> Iterator[str]:
    for file in record.files:
        if not _is_plain(file.name):
            yield f"{PROVENANCE}: a file outside the output: {file.name[:60]!r}"
            continue
        place = path / file.name
        if not _is_file(place):
            yield f"{file.name}: missing"
            continue
        size = place.stat().st_size
        if size != file.bytes:
            yield f"{file.name}: {size} bytes, expected {file.bytes}"
        with place.open("rb") as handle:
            head = handle.read(8)
            text = head + handle.read(min(int.from_bytes(head, "little"), 100_000_000))
        if xxhash.xxh3_128_hexdigest(text) != file.header_xxh3:
            yield f"{file.name}: its header is not the one written"


def _check_tensors(
    checkpoint: Checkpoint, record: _Record, progress: Callable[[int, int], None] | None
) -> Iterator[str]:
    total, done = checkpoint.total_bytes, 0
    buffer = memoryview(bytearray(PIECE_BYTES))
    for name in record.tensors:
        if name not in checkpoint.tensors:
            yield f"tensor {name}: missing"
    for name, info in checkpoint.tensors.items():
        if name not in record.tensors:
            yield f"tensor {name}: not in the provenance"
            continue
        digest = xxhash.xxh3_128()
        for start in range(0, info.nbytes, PIECE_BYTES):
            part = buffer[: min(PIECE_BYTES, info.nbytes - start)]
            checkpoint.read_into(info, start, part)
            digest.update(part)
            done += len(part)
            if progress is not None:
                progress(done, total)
        if digest.hexdigest() != record.tensors[name].xxh3:
            yield f"tensor {name} in {checkpoint.file_of(name)}: its bytes are not those written"


def _at_commits(record: _Record, notes: list[str]) -> dict[str, Source]:
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


def _recompute(path: Path, record: _Record, fraction: float, problems: list[str], notes: list[str]) -> int:
    """Derive a sample of the tensors anew, by the recorded recipe from the recorded inputs."""
    job = resolve(Recipe.from_data(record.recipe, f"{path}/{PROVENANCE}"))
    inputs = open_inputs(job, _at_commits(record, notes), adapters=True)
    given = inputs.given.checkpoints
    if len(given) != len(record.inputs):
        problems.append(f"{PROVENANCE}: {len(record.inputs)} inputs, but its recipe has {len(given)}")
        return 0
    for checkpoint, said in zip(given, record.inputs, strict=True):
        found = [(Path(f.path).name, f.size, f.header_digest) for f in checkpoint.files]
        if found != [(f.name, f.bytes, f.header_xxh3) for f in said.files]:
            problems.append(f"input {checkpoint.ref}: not the files that were merged")
            return 0
    plan = make_plan(job, inputs, path, memory=DEFAULT_MEMORY, workers=None, device="cpu")
    plan = fetched(plan, side_files=False)
    tasks, names = _sample(plan, fraction)
    records = Records()
    execute(Run(plan, tasks, NullSink(), records))
    differing = [name for name in names if records.digests[name] != record.tensors[name].xxh3]
    if differing:
        problems += _written_since(path, given)
    problems += [f"tensor {name}: computed anew, its bytes differ" for name in differing]
    return len(names)


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
