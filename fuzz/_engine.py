"""One target in this process, driven by libFuzzer: ``python -m fuzz._engine``, as ``fuzz._session`` starts it."""

from __future__ import annotations

import codecs
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import atheris

from fuzz._catalogue import target_of
from fuzz._guard import Guard, guarded
from fuzz._instrument import instrument
from fuzz._target import Run, Target
from stockpot import errors

MOST_MEGABYTES = 4096
CODECS = ("ascii", "latin-1", "cp437", "unicode_escape", "raw_unicode_escape")
"""Modules of the interpreter, imported where a text first needs them."""


def fuzz(target: Target, room: Path, options: Sequence[str], *, is_watched: bool = True) -> None:
    """Run inputs until one is a finding, or as the options say; ends the process. ``room`` is an empty folder.

    Without ``is_watched`` nothing is instrumented, and inputs are made blindly.
    """
    corpus, work = room / "corpus", room / "work"
    corpus.mkdir()
    work.mkdir()
    seeds = target.seeds()
    for number, content in enumerate(seeds):
        (corpus / f"{number:04d}").write_bytes(content)
    words = room / "words"
    words.write_text("".join(map(_word, target.words)))
    run = target.prepare(work)
    if is_watched:
        instrument([*target.modules])
    warm_up(run, seeds)
    guard = Guard(work, writes=target.writes)
    mutator = {} if target.mutate is None else {"custom_mutator": functools.partial(_mutated, target)}
    fixed = (
        *("-timeout=0", "-print_final_stats=1", f"-rss_limit_mb={MOST_MEGABYTES}", "-len_control=0", "-reload=0"),
        *(f"-max_len={target.max_bytes}", *((f"-dict={words}",) if target.words else ())),
    )
    atheris.Setup([sys.argv[0], *fixed, *options, str(corpus)], guarded(run, guard), **mutator)
    guard.install()
    atheris.Fuzz()


def warm_up(run: Run, seeds: Sequence[bytes]) -> None:
    """Run the seeds without a guard: what is imported only where it is used is imported now."""
    for codec in CODECS:
        codecs.lookup(codec)
    for content in seeds:
        try:
            run(content)
        except errors.StockpotError as error:
            error.line()


def _mutated(target: Target, data: bytes, most: int, seed: int) -> bytes:
    assert target.mutate is not None
    return target.mutate(data, most, Random(seed))[:most]


def _word(word: bytes) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n'


if __name__ == "__main__":
    fuzz(target_of(sys.argv[1]), Path(sys.argv[2]), sys.argv[4:], is_watched=sys.argv[3] == "watched")
