"""The journal of an unfinished output."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import atheris
import xxhash

from fuzz import _json
from fuzz._guard import Finding
from fuzz._target import Run, Target
from stockpot.checkpoint import _journal

RECORDS = ({"job": "0" * 32}, {"tensor": "layers.0.weight", "digest": "0" * 32}, {"gram": "layers.0.weight"})


def _prepare(folder: Path) -> Run:
    path = folder / "journal"

    def run(data: bytes) -> None:
        records, intact = _journal.decode(data)
        if not 0 <= intact <= len(data) or data[:intact].count(b"\n") != len(records):
            raise Finding(f"{len(records)} records in {intact} bytes")
        for record in records:
            if not all(isinstance(value, str) for value in record.values()):
                raise Finding(f"a record that nobody writes: {record!r}")
            if not {"job"} <= set(record) and set(record) not in ({"tensor", "digest"}, {"gram"}):
                raise Finding(f"a record that nobody writes: {record!r}")
        path.write_bytes(data)
        journal = _journal.Journal(path)
        journal.forget()
        journal.close()

    return run


def _seeds() -> list[bytes]:
    lines = [_journal.encode(record) for record in RECORDS]
    return [b"".join(lines), lines[0], b"", b"".join(lines)[:-5]]


def _mutate(data: bytes, most: int, random: Random) -> bytes:
    """Mostly lines whose digest is right, of changed records."""
    if random.random() < 0.3:
        return bytes(atheris.Mutate(data, most))
    lines = data.split(b"\n")
    place = random.randrange(len(lines))
    text = lines[place].partition(b" ")[2] or json.dumps(random.choice(RECORDS)).encode()
    changed = _json.mutate_json(text, random, (*_json.VALUES, "job", "tensor", "gram", "digest")) or text
    lines.insert(place, xxhash.xxh3_64_hexdigest(changed).encode() + b" " + changed)
    return b"\n".join(lines)


TARGET = Target("journal", _prepare, _seeds, (_journal,), _mutate, (b'"tensor"', b'"gram"', b'"digest"'), writes=True)
