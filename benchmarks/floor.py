"""The floor: read every input once into one reused buffer, write one output, fsync.

Runs as its own process and imports the standard library only. No program that
reads the inputs and writes a durable result one after the other does less, so a
merge is judged by the ratio of its time to this one. The definition is sequential
and single-threaded on purpose (README.md says what the cleverer forms would gain).

    python benchmarks/floor.py --out OUT --bytes N [--reads 2] FILE...

prints one JSON object with the seconds of each part.
"""

import argparse
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

CHUNK_BYTES = 256 * 1024
"""Read and write size: the buffer stays in the second-level cache of a core."""


def read_files(files: Iterable[Path], buffer: bytearray) -> int:
    """Read every file from start to end into ``buffer``; return the bytes read."""
    total = 0
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            offset = 0
            while count := os.preadv(descriptor, [buffer], offset):
                offset += count
            total += offset
        finally:
            os.close(descriptor)
    return total


def write_bytes(descriptor: int, buffer: bytearray, count: int) -> None:
    """Write ``count`` bytes to an open file, repeating ``buffer``."""
    view = memoryview(buffer)
    offset = 0
    while offset < count:
        offset += os.pwrite(descriptor, view[: count - offset], offset)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def floor(files: list[Path], out: Path, output_bytes: int, *, reads: int, chunk_bytes: int) -> dict[str, float]:
    """Read, write, fsync, rename; return the seconds and bytes of each part."""
    buffer = bytearray(chunk_bytes)
    partial = out.with_name(out.name + ".partial")
    marks = [time.perf_counter()]
    bytes_read = sum(read_files(files, buffer) for _ in range(reads))
    marks.append(time.perf_counter())
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    descriptor = os.open(partial, flags, 0o666)
    try:
        write_bytes(descriptor, buffer, output_bytes)
        marks.append(time.perf_counter())
        os.fsync(descriptor)
        marks.append(time.perf_counter())
    finally:
        os.close(descriptor)
    partial.replace(out)
    sync_folder(out.parent)
    marks.append(time.perf_counter())
    names = ("read_seconds", "write_seconds", "fsync_seconds", "rename_seconds")
    parts = {name: end - start for name, start, end in zip(names, marks[:-1], marks[1:], strict=True)}
    return parts | {"bytes_read": bytes_read, "bytes_written": output_bytes}


def main() -> None:
    """Parse the command line, run the floor once, print its JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--bytes", required=True, type=int, help="bytes to write")
    parser.add_argument("--reads", type=int, default=1, help="passes over the inputs")
    parser.add_argument("--chunk", type=int, default=CHUNK_BYTES, help="bytes")
    given = parser.parse_args()
    parts = floor(
        given.files,
        given.out,
        given.bytes,
        reads=given.reads,
        chunk_bytes=given.chunk,
    )
    print(json.dumps(parts))


if __name__ == "__main__":
    main()
