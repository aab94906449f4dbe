"""What the commands that evaluate have in common: their options as records, their progress, their files."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import json as jsonlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_type_hints

from stockpot import errors
from stockpot.cli import _options as opt
from stockpot.cli import _output

if TYPE_CHECKING:
    from rich.table import Table

    from stockpot.evaluate import Options, ResultCache
    from stockpot.report import Picture
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


def require_apart(*places: Path | None) -> None:
    """No two outputs at one place."""
    given = [path.absolute() for path in places if path is not None]
    twice = next((path for number, path in enumerate(given) if path in given[:number]), None)
    if twice is not None:
        raise errors.OutputError("two outputs at one place", file=str(twice), remedy="give each its own")


def require_report(html: Path | None, figures: Path | None) -> None:
    """What draws is installed, where something is to be drawn."""
    if html is not None or figures is not None:
        from stockpot import report

        report.require_drawing()


def write_report(
    html: Path | None, page: Callable[[], str], figures: Path | None, pictures: Callable[[], Sequence[Picture]]
) -> None:
    """The page and the pictures that were asked for."""
    if html is not None:
        write_text(html, page())
    if figures is not None:
        from stockpot import report

        report.save_pictures(pictures(), figures)


def write_text(path: Path, text: str) -> None:
    """A file that was asked for."""
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise errors.RunError(f"writing failed ({error.strerror})", file=str(path), remedy="check the disk") from error


def write_json(path: Path | None, data: Mapping[str, Any]) -> None:
    """All numbers, where a file was asked for."""
    if path is not None:
        write_text(path, jsonlib.dumps(data, indent=1, allow_nan=False) + "\n")


class Found(Protocol):
    """What a study found."""

    @property
    def evaluated(self) -> int:
        """Evaluations that it took."""

    @property
    def known(self) -> int:
        """Results that were there already."""

    def data(self) -> dict[str, object]:
        """Plain values."""


@dataclass(frozen=True)
class Study:
    """The options of every command that evaluates; ``with_study`` puts them into its signature."""

    cache: opt.Cache = None
    limit: opt.Limit = None
    batch: opt.Batch = None
    device: opt.EvaluatorDevice = None
    precision: opt.Precision = None
    seed: opt.Seed = None
    timeout: opt.Timeout = None
    check_evaluator: opt.CheckEvaluator = False
    only: opt.Only = None
    exclude: opt.Exclude = None
    rename: opt.Rename = None
    missing: opt.MissingTensors = None
    mismatch: opt.MismatchedTensors = None
    memory: opt.Memory = "192MiB"
    workers: opt.Workers = None
    json_out: opt.JsonOut = None
    json: opt.Json = False
    quiet: opt.Quiet = False
    verbose: opt.Verbose = False

    def correspondence(self, dtype: str | None = None) -> Correspondence:
        """Which tensors take part; the recipe checks the words."""
        from stockpot.soups import Correspondence

        words: Any = {"missing": self.missing or "error", "mismatch": self.mismatch or "error"}
        return Correspondence(self.only or (), self.exclude or (), self.rename or (), dtype=dtype, **words)

    def options(self, *, with_seed: bool = True) -> Options:
        """What the evaluator is told."""
        from stockpot.evaluate import Options

        seed = self.seed if with_seed else None
        return Options(self.limit, self.batch, self.device, self.precision, seed, self.timeout)

    def warn_direction(self, select: str | None) -> None:
        """More is better unless it is said; of a loss nobody means that."""
        if select is None or select.endswith((":min", ":max")):
            return
        if any(word in select.lower() for word in _LESS):
            words = f"--select {select} takes the greatest; for the least, --select {select}:min"
            _output.print_warnings([words], self.quiet)

    @contextmanager
    def running(self, label: str, *, with_seed: bool = True) -> Iterator[Running]:
        """How a study is to run. What an evaluator prints goes to stderr: stdout is for the result.

        On a terminal, a live table with the time left, from the moment that the study knows how much it has to do.
        """
        from stockpot.soups import Running, Scored, Step

        def heard(found: Scored) -> None:
            watched.result(found.label, found.scores.values)

        def decided(step: Step) -> None:
            if step.before is not None:
                watched.verdict("accepted" if step.accepted else "rejected")

        options = self.options(with_seed=with_seed)
        with _talk_on_stderr(), _output.watching(label, self.quiet) as watched:
            yield Running(
                open_cache(self.cache), options, self.memory, self.workers,
                twice=self.check_evaluator, seed=self.seed, begun=watched.start, heard=heard, decided=decided,
                told=lambda line: _output.say(f"stockpot: {line}", self.quiet),
            )  # fmt: skip

    def finish(
        self,
        command: str,
        found: Found,
        shown: Table | None,
        lines: Sequence[str],
        *,
        warnings: Sequence[str] = (),
        more: Mapping[str, Any] | None = None,
        counted: bool = True,
    ) -> None:
        """The result: a file of all numbers where asked; one object (with ``more``), or a table and sentences; then, on
        stderr, warnings and what it took.
        """
        data = found.data() if self.json or self.json_out is not None else {}
        write_json(self.json_out, data)
        if self.json:
            _output.print_object(command, "done", warnings, {**data, **(more or {})})
        else:
            if shown is not None:
                _output.print_table(shown)
            for line in lines:
                _output.print_line(line)
        _output.print_warnings(warnings, self.quiet)
        if counted:
            from stockpot import report

            done = report.counted(found.evaluated, "evaluation"), report.counted(found.known, "result")
            _output.say(f"stockpot: {done[0]}, {done[1]} known before", self.quiet)


def with_study(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose argument ``study`` is, on the command line, every option of ``Study``."""
    own = inspect.signature(command, eval_str=True)
    hints = get_type_hints(Study, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(Study)
    ]
    kept = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own.parameters.values() if one.name != "study"]

    @functools.wraps(command)
    def called(**given: Any) -> None:
        study = Study(**{field.name: given.pop(field.name) for field in fields(Study)})
        command(study=study, **given)

    called.__signature__ = inspect.Signature([*kept, *shared])  # type: ignore[attr-defined]  # inspect reads it (PEP 362), typeshed does not list it
    called.__annotations__ = {one.name: one.annotation for one in (*kept, *shared)}
    return called


_LESS = ("loss", "error", "perplexity", "ppl", "nll", "wer", "calibration")
"""Words for numbers of which less is better."""


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
