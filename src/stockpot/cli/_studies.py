"""What the commands that evaluate have in common: their options as records, their progress, their files."""

from __future__ import annotations

import contextlib
import io
import json as jsonlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockpot import errors
from stockpot.cli import _output

if TYPE_CHECKING:
    from stockpot.evaluate import Options, ResultCache
    from stockpot.soups import Correspondence, Running


def open_cache(text: str | None) -> ResultCache:
    """``--cache``: a file, ``none``, or the user's own."""
    from stockpot.evaluate import ResultCache, default_cache

    if text == "none":
        return ResultCache(None)
    return ResultCache(default_cache() if text is None else Path(text).expanduser())


def require_places(*files: Path | None, folder: Path | None = None) -> None:
    """Files, and a folder of pictures, can be written where they are wanted; said before anything is evaluated."""
    for path in (*files, folder):
        if path is None:
            continue
        parent = path.absolute().parent
        if not parent.is_dir():
            raise errors.OutputError("there is no such folder", file=str(path.parent), remedy="make it first")
        if path is not folder and path.is_dir():
            raise errors.OutputError("a folder is in the way of a file", file=str(path), remedy="give another name")
        if path is folder and path.exists() and not path.is_dir():
            raise errors.OutputError("a file is in the way of a folder", file=str(path), remedy="give another name")
        if not os.access(path if path.exists() else parent, os.W_OK):
            raise errors.OutputError("no right to write there", file=str(path), remedy="give another place")


def write_text(path: Path | None, text: str) -> None:
    """A file that was asked for."""
    if path is None:
        return
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise errors.RunError(f"writing failed ({error.strerror})", file=str(path), remedy="check the disk") from error


def write_json(path: Path | None, data: Mapping[str, Any]) -> None:
    """All numbers, where a file was asked for."""
    if path is not None:
        write_text(path, jsonlib.dumps(data, indent=1, allow_nan=False) + "\n")


def correspondence(
    only: list[str] | None,
    exclude: list[str] | None,
    rename: list[str] | None,
    missing: str | None,
    mismatch: str | None,
    dtype: str | None = None,
) -> Correspondence:
    """The options of that name; the recipe checks their words."""
    from stockpot.soups import Correspondence

    words: Any = {"missing": missing or "error", "mismatch": mismatch or "error"}
    return Correspondence(only or (), exclude or (), rename or (), dtype=dtype, **words)


def warn_direction(select: str | None, quiet: bool) -> None:
    """More is better unless it is said; of a loss nobody means that."""
    if select is not None and any(word in select.lower() for word in _LESS) and not select.endswith((":min", ":max")):
        _output.print_warnings([f"--select {select} takes the greatest; for the least, --select {select}:min"], quiet)


_LESS = ("loss", "error", "perplexity", "ppl", "nll", "wer", "calibration")
"""Words for numbers of which less is better."""


def say_counts(evaluated: int, known: int, quiet: bool) -> None:
    """How much was done, and how much was known already."""
    _output.say(f"stockpot: {evaluated} evaluations, {known} results were there already", quiet)


@contextmanager
def running(
    label: str, options: Options, *, cache: str | None, memory: str, workers: int | None, twice: bool, quiet: bool
) -> Iterator[Running]:
    """How a study is to run. What an evaluator prints goes to stderr: stdout is for the result.

    On a terminal, a bar with the time left, from the moment that the study knows how much it has to do.
    """
    from stockpot.soups import Running, Scored, Step

    def heard(found: Scored) -> None:
        watched.result(found.label, found.scores.values)

    def decided(step: Step) -> None:
        if step.before is not None:
            watched.verdict("accepted" if step.accepted else "rejected")

    with _talk_on_stderr(), _output.watching(label, quiet) as watched:
        yield Running(
            open_cache(cache), options, memory, workers,
            twice=twice, begun=watched.start, heard=heard, decided=decided,
            told=lambda line: _output.say(f"stockpot: {line}", quiet),
        )  # fmt: skip


class _Talk(io.TextIOBase):
    """What is printed goes to stderr; closing it closes nothing."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def close(self) -> None:
        """Whoever printed is done; stderr is not."""


@contextmanager
def _talk_on_stderr() -> Iterator[None]:
    """Python's stdout and the descriptor itself, for what other programs and libraries write."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(_Talk()):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
