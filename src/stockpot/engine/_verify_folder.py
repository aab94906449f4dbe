"""The files of an output folder against its sums, its provenance, and one another. Nothing of the inputs is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, Field

from stockpot import errors
from stockpot.checkpoint import (
    CONFIG,
    Checkpoint,
    Part,
    Source,
    TensorInfo,
    by_part,
    header_of,
    is_below,
    is_mergeable,
    is_side_folder,
    open_local,
    require_readable,
)
from stockpot.engine._job import Job, resolve
from stockpot.engine._plan import Group
from stockpot.engine._provenance import CARD, PROVENANCE, RECIPE, RUN, as_code, fenced
from stockpot.engine._records import Records
from stockpot.engine._side_files import adapted_config
from stockpot.engine._sinks import GEOMETRY
from stockpot.engine._sums import SUMS, file_sum, read_sums
from stockpot.measure import unpack
from stockpot.recipe import Recipe

STACK_BYTES = 4 << 20
"""Inner products that a method is asked about at once."""


class _Kept(BaseModel):
    """What we do not check is kept too."""

    model_config = ConfigDict(extra="allow")


class FileRecord(_Kept):
    """A file of weights as the provenance has it."""

    name: str
    bytes: int
    header_xxh3: str


class InputRecord(_Kept):
    """An input as the provenance has it."""

    ref: str
    commit: str = ""
    files: list[FileRecord]


class TensorRecord(_Kept):
    """A tensor as the provenance has it."""

    dtype: str
    xxh3: str


class DecisionRecord(_Kept):
    """What became of a tensor that was not merged like the others."""

    tensor: str


class Record(_Kept):
    """What is checked of the provenance; everything else in it is for people."""

    stockpot: str
    torch: str
    device: str
    recipe: dict[str, Any]
    inputs: list[InputRecord] = Field(min_length=1)
    files: list[FileRecord]
    groups: dict[str, dict[str, Any]]
    decisions: list[DecisionRecord]
    tensors: dict[str, TensorRecord]
    chosen: dict[str, Any] | None = None
    settings: list[dict[str, Any]] | None = None
    made_from: dict[str, Any] | None = None


def check_sums(path: Path) -> tuple[list[str], Set[str]]:
    """What is wrong with the small files, by SHA256SUMS; and their names."""
    place = path / SUMS
    if not place.is_file():
        return ([f"{SUMS}: missing"] if (path / PROVENANCE).is_file() else []), frozenset()
    require_readable(place)
    listed, problems = read_sums(place.read_bytes())
    for name, digest in listed.items():
        file = path / name
        if not is_below(name):
            problems.append(f"{SUMS}: lists {name!r}, which is outside")
        elif not _is_file(file):
            problems.append(f"{name}: missing, and {SUMS} lists it")
        else:
            require_readable(file)
            if file_sum(file) != digest:
                problems.append(f"{name}: its bytes are not those of {SUMS}")
    return problems, listed.keys()


def check_listed(path: Path, record: Record, listed: Set[str]) -> Iterator[str]:
    """Files that no record speaks of, nor ``listed`` has; hidden ones, and folders that training leaves, are not looked
    at."""
    known = {SUMS, *(file.name for file in record.files), *listed}
    for entry in sorted(path.rglob("[!.]*")):
        inside = entry.relative_to(path)
        if entry.is_dir() and not entry.is_symlink():
            continue
        if str(inside) not in known and all(map(is_side_folder, inside.parts[:-1])):
            yield f"{inside}: not in {SUMS}, and no weights that were written"


def check_files(path: Path, record: Record) -> Iterator[str]:
    """Size and header of each file of weights."""
    for file in record.files:
        place = path / file.name
        if not is_below(file.name):
            yield f"{PROVENANCE}: speaks of the file {file.name!r}, which is outside"
        elif not _is_file(place):
            yield f"{file.name}: missing"
        elif (size := place.stat().st_size) != file.bytes:
            yield f"{file.name}: {size} bytes, expected {file.bytes}"
        elif xxhash.xxh3_128_hexdigest(header_of(place)) != file.header_xxh3:
            yield f"{file.name}: its header is not the one written"


def _is_file(place: Path) -> bool:
    try:
        return place.is_file()
    except OSError:  # no file can have such a name
        return False


def check_agreement(path: Path, record: Record, checkpoint: Checkpoint) -> Iterator[str]:
    """Recipe, indexes, configurations, inner products, run and card against the provenance and the weights."""
    try:
        recipe = Recipe.from_data(record.recipe, f"{path}/{PROVENANCE}")
        if Recipe.from_file(path / RECIPE) != recipe:
            yield f"{RECIPE}: not the recipe that {PROVENANCE} records"
        yield from _check_grams(path / GEOMETRY, resolve(recipe), record)
    except errors.StockpotError as error:
        yield error.line()
    decided = {decision.tensor for decision in record.decisions}
    for part, own in by_part(checkpoint.tensors.values(), checkpoint.parts):
        yield from _check_part(path, part, own, record, decided)
    yield from _check_run(_json(path / RUN), record)
    yield from _check_card(path, record)


def _bytes(file: Path) -> bytes:
    """What a regular file holds; a pipe would keep us waiting."""
    try:
        return file.read_bytes() if file.is_file() else b""
    except OSError:
        return b""


def _json(file: Path) -> Any:
    try:
        return json.loads(_bytes(file))
    except (ValueError, RecursionError):
        return None


def _check_part(path: Path, part: Part, own: Sequence[TensorInfo], record: Record, decided: Set[str]) -> Iterator[str]:
    index = f"{part.prefix}{part.stem}.safetensors.index.json"
    files = {info.file for info in own}
    if (path / index).exists() or len(files) > 1:
        content = _json(path / index)
        stated = content.get("metadata") if isinstance(content, dict) else None
        total = sum(info.nbytes for info in own)
        if not isinstance(stated, dict) or stated.get("total_size") != total:
            yield f"{index}: its metadata does not say total_size {total}"
    config = path / part.prefix / CONFIG
    floats = [info for info in own if is_mergeable(info.dtype)]
    dtypes = {info.dtype for info in floats}
    # Only where all have one dtype, and some of them was merged, it is known what the configuration was made to say.
    if len(dtypes) == 1 and record.groups and any(i.name not in decided for i in floats) and config.is_file():
        content = _bytes(config)
        if adapted_config(content, dtypes, False) != content:
            yield f"{part.prefix}{CONFIG}: states another dtype than the weights have"


def _check_grams(file: Path, job: Job, record: Record) -> Iterator[str]:
    """The inner products give the coefficients that were recorded."""
    if not job.method.uses_gram or not file.exists():
        return
    source = open_local(GEOMETRY, file)
    records = Records()
    alike: dict[tuple[int, int], list[TensorInfo]] = {}
    for name, info in source.tensors.items():
        setting, size = _asked(name, job, record)
        if setting < 0:
            yield f"{PROVENANCE}: tensor {name} has no setting among those recorded"
        elif info.dtype != "F64" or len(info.shape) not in (1, 2) or info.shape[-1] != size * (size + 1) // 2:
            yield f"{GEOMETRY}: tensor {name} is no upper triangle of {size} inputs"
        elif len(info.shape) == 2:
            yield from _answered(source, [info], size, job, records, _recorded(record, job, setting))
        else:
            alike.setdefault((setting, size), []).append(info)
    for (setting, size), infos in alike.items():
        several = max(1, STACK_BYTES // (8 * size * size))
        values = _recorded(record, job, setting)
        for begin in range(0, len(infos), several):
            yield from _answered(source, infos[begin : begin + several], size, job, records, values)
    yield from differing_groups(records, record, f"{GEOMETRY} gives other coefficients than {PROVENANCE}")
    yield from (f"{GEOMETRY}: tensor {name}: missing" for name in record.groups if name not in source.tensors)


def _asked(name: str, job: Job, record: Record) -> tuple[int, int]:
    """(setting, number of inputs) of a group as recorded; -1 where its setting is not there."""
    if record.settings is None:
        return 0, len(job.models) + job.anchored
    said = record.groups.get(name, {})
    setting, weights = said.get("setting"), said.get("weights")
    sources = len(weights) if isinstance(weights, list) else len(job.sections[0].sources)
    return (setting if isinstance(setting, int) and 0 <= setting < len(record.settings) else -1), sources


def _recorded(record: Record, job: Job, setting: int) -> Mapping[str, object]:
    """The parameters that were used."""
    return job.values if record.settings is None else record.settings[setting]


def _answered(
    source: Source,
    infos: Sequence[TensorInfo],
    size: int,
    job: Job,
    records: Records,
    values: Mapping[str, object],
) -> Iterator[str]:
    """Record what the method answers to stored inner products, of several groups or of the rows of one; yield why it
    does not."""
    by_rows = len(infos[0].shape) == 2
    data = np.empty(infos[0].shape if by_rows else (len(infos), *infos[0].shape))
    for info, place in zip(infos, [data] if by_rows else data, strict=True):
        source.read_into(info, 0, place.reshape(-1).view(np.uint8).data)
    groups = [Group(info.name, (), info.shape[0] if by_rows else 0) for info in infos]
    why = ""
    try:
        with np.errstate(all="ignore"):
            mixture = job.answer(unpack(data, size), values)
        if by_rows:
            records.add_rows(groups[0], 0, mixture)
            records.finish_rows(groups[0])
        else:
            records.add_many(groups, mixture)
    except errors.MethodError as error:
        why = error.what
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a method trusts its inner products
        why = f"{job.method.name} cannot work on it ({error})"
    if why and len(infos) > 1:
        for info in infos:
            yield from _answered(source, [info], size, job, records, values)
    elif why:
        yield f"{GEOMETRY}: tensor {infos[0].name}: {why}"


def differing_groups(records: Records, record: Record, what: str) -> Iterator[str]:
    """Groups whose coefficients are not those recorded."""
    for name, found in sorted(records.groups.items()):
        said = {key: value for key, value in record.groups.get(name, {}).items() if key != "setting"}
        if not _is_close(json.loads(json.dumps(found.data())), said):
            yield f"tensor {name}: {what}"


def _is_close(one: object, other: object) -> bool:
    """Equal but for the last digits, in which processors may differ."""
    if isinstance(one, float) and isinstance(other, float):
        return (
            one == other
            or (one != one and other != other)
            or abs(one - other) <= 1e-9 * max(abs(one), abs(other), 1e-3)
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_close, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_close(value, other[key]) for key, value in one.items())
    return one == other


def _check_run(content: Any, record: Record) -> Iterator[str]:
    try:
        found = [[(file["bytes"], file["header_xxh3"]) for file in files] for files in content["inputs"]]
    except (KeyError, TypeError):
        found = None
    if found != [[(file.bytes, file.header_xxh3) for file in said.files] for said in record.inputs]:
        yield f"{RUN}: not the inputs that {PROVENANCE} records"


def _check_card(path: Path, record: Record) -> Iterator[str]:
    text, recipe = _bytes(path / CARD), _bytes(path / RECIPE).decode("utf-8", "surrogateescape").rstrip()
    closing = "\n".join(["", *fenced(recipe), ""]).encode("utf-8", "surrogateescape")
    refs = [f"| {as_code(said.ref)}".encode("utf-8", "backslashreplace") for said in record.inputs]
    if not text.endswith(closing) or not all(ref in text for ref in refs):
        yield f"{CARD}: not the recipe and inputs of {PROVENANCE}"
