"""Prove an output: layout, digests, sums, one record against the other; on request derive it anew from its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash
from pydantic import ValidationError

from stockpot import errors
from stockpot.checkpoint import (
    SEAL,
    Checkpoint,
    damaged_member,
    is_sealed_archive,
    is_sealed_header,
    local_path,
    open_local,
    read_provenance,
    require_readable,
)
from stockpot.engine._provenance import PROVENANCE
from stockpot.engine._rederive import rederive
from stockpot.engine._sums import SUMS
from stockpot.engine._verify_folder import Record, check_agreement, check_files, check_listed, check_sums

PIECE_BYTES = 4 << 20


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
    derived anew from the recorded inputs (Hub ids at the recorded commits) and compared bit by bit: a seeded sample,
    the same in every run of the same job; 1 compares all small files that follow from the inputs too. Returns what was
    checked; ``problems`` is empty if all is whole, and else names the file, and of weights the tensor; ``notes`` says
    which Hub ids mean another commit by now. Raises CheckpointError where there is no provenance to check against, or
    an input is gone. Cost: one read of OUT; ``recompute`` times one merge.
    """
    path = local_path(out)
    if not 0.0 <= recompute <= 1.0:
        raise errors.ParameterError("--recompute is a fraction", expected="0 to 1", got=recompute)
    if not path.exists():
        raise errors.NotFoundError("no such file or folder", file=str(out), remedy="check the path")
    problems, listed = check_sums(path) if path.is_dir() else ([], frozenset())
    try:
        if path.is_dir():
            record = _record(_stated_by_folder(path), path / PROVENANCE)
            problems += [*check_files(path, record), *check_listed(path, record, listed)]
            checkpoint = open_local(str(path), path)
            problems += check_agreement(path, record, checkpoint)
        else:
            checkpoint = open_local(str(path), path)
            record = _record(_stated_by_file(path, checkpoint), path)
    except errors.NotAnOutputError:
        raise
    except errors.CheckpointError as error:
        return VerifyResult(path, 0, len(listed), 0, (*problems, error.line(), *error.problems))
    problems += _check_tensors(checkpoint, record, progress)
    notes: list[str] = []
    count = rederive(path, record, recompute, problems, notes) if recompute > 0 and not problems else 0
    files = len(listed) + len(checkpoint.files)
    return VerifyResult(path, len(checkpoint.tensors), files, count, tuple(problems), tuple(notes))


def _record(text: bytes, file: Path) -> Record:
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise errors.CheckpointError(
            f"the provenance cannot be read ({where}: {first['msg']})", file=str(file)
        ) from None


def _stated_by_folder(path: Path) -> bytes:
    place = path / PROVENANCE
    if place.is_file():
        require_readable(place)
        return place.read_bytes()
    if (path / SUMS).is_file():
        raise errors.CheckpointError("the provenance is gone", file=str(place))
    raise errors.NotAnOutputError("not an output of stockpot", file=str(path), expected=f"a {PROVENANCE} in it")


def _stated_by_file(path: Path, checkpoint: Checkpoint) -> bytes:
    """The provenance inside a file whose frame, all but the bytes of its tensors, is the one that was sealed."""
    if checkpoint.is_pickle:
        places = [(info.offset, info.offset + info.nbytes) for info in checkpoint.tensors.values()]
        found, sealed = read_provenance(path), is_sealed_archive(path, places)
        if damaged := damaged_member(path) if found or sealed is not None else None:
            raise errors.PickleFormatError("a member of the archive is damaged", file=str(path), tensor=damaged)
        if (found, sealed) != (None, None) and not (found and sealed):
            raise errors.PickleFormatError("outside its tensors the archive is not the one written", file=str(path))
    else:
        stated = checkpoint.metadata.get("stockpot")
        found = None if stated is None else stated.encode("utf-8", "surrogatepass")
        if (stated is not None or SEAL in checkpoint.metadata) and not is_sealed_header(path):
            raise errors.HeaderSyntaxError("the header is not the one written", file=str(path))
    if found is None:
        raise errors.NotAnOutputError("not an output of stockpot", file=str(path), expected="provenance inside it")
    return found


def _check_tensors(
    checkpoint: Checkpoint, record: Record, progress: Callable[[int, int], None] | None
) -> Iterator[str]:
    total, done = checkpoint.total_bytes, 0
    buffer = memoryview(bytearray(PIECE_BYTES))
    for name in record.tensors:
        if name not in checkpoint.tensors:
            yield f"tensor {name}: missing"
    for name, info in checkpoint.tensors.items():
        if name not in record.tensors:
            yield f"tensor {name} in {checkpoint.file_of(name)}: not in the provenance"
            continue
        if info.dtype != record.tensors[name].dtype:
            yield f"tensor {name} in {checkpoint.file_of(name)}: {info.dtype}, expected {record.tensors[name].dtype}"
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
