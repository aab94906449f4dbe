"""``command:"python eval.py {checkpoint}"``: a program that prints its result as the last line."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stockpot import errors
from stockpot.evaluate._base import Form, Options
from stockpot.evaluate._data import digest_of_files
from stockpot.evaluate._scores import Scores, scores_of

PLACE = "{checkpoint}"
TAIL = 300
"""Characters of a failing program's last words."""


@dataclass(frozen=True)
class CommandEvaluator:
    """Runs without a shell; ``{checkpoint}`` is the path. The last line of stdout is a number or a map, as JSON."""

    name: str
    words: tuple[str, ...]
    timeout: float | None = None
    form: Form = "checkpoint"
    uses_folder: bool = True

    @property
    def content(self) -> Mapping[str, Any]:
        """The words, and the content of files among them (the script)."""
        files = [Path(word) for word in self.words if PLACE not in word and Path(word).is_file()]
        programs = {str(file): digest_of_files([file], file.parent) for file in files[:20]}
        return {"form": "command", "words": self.words, "files": programs}

    def evaluate(self, model: dict[str, Any] | Path, folder: Path | None = None) -> Scores:
        command = [word.replace(PLACE, str(model)) for word in self.words]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                errors="backslashreplace", start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise errors.EvaluatorError(
                f"the evaluator cannot be started ({error.strerror})", file=command[0], remedy="check the command"
            ) from None
        try:
            out, err = process.communicate(timeout=self.timeout)
        except subprocess.TimeoutExpired:
            _end(process)
            raise errors.EvaluatorError(
                "the evaluator took too long", file=self.name, expected=f"at most {self.timeout:g} s",
                remedy="give --timeout more, or look why",
            ) from None  # fmt: skip
        except BaseException:
            _end(process)
            raise
        if process.returncode != 0:
            words = err.strip().splitlines()
            raise errors.EvaluatorError(
                f"the evaluator failed ({(words[-1] if words else 'nothing on stderr')[-TAIL:]})", file=self.name,
                expected="exit code 0", got=process.returncode, problems=words[-10:-1],
            )  # fmt: skip
        lines = [line for line in out.splitlines() if line.strip()]
        try:
            result = json.loads(lines[-1])
        except (IndexError, ValueError):
            last = repr(lines[-1][:TAIL]) if lines else "nothing"
            raise errors.EvaluatorError(
                "the evaluator's last line is no result", file=self.name,
                expected='a number, or a map such as {"accuracy": 0.9}', got=last,
            ) from None  # fmt: skip
        return scores_of(result, self.name)


def load_command(text: str, words: str, options: Options) -> CommandEvaluator:
    """Read the words as a shell would; UsageError where the checkpoint has no place among them."""
    given = [name for name in options.given() if name != "timeout"]
    if given:
        raise errors.UsageError(f"a command takes no --{given[0]}", remedy="write it into the command")
    try:
        parts = tuple(shlex.split(words))
    except ValueError as error:
        raise errors.UsageError(f"the command cannot be read ({error})", got=repr(text)) from None
    if not any(PLACE in part for part in parts):
        raise errors.UsageError(
            "the command does not say where the checkpoint goes", expected=f'command:"program {PLACE}"', got=repr(text)
        )
    return CommandEvaluator(text, parts, options.timeout)


def _end(process: subprocess.Popen[str]) -> None:
    """The program and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
