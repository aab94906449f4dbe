"""The exceptions of stockpot, one tree.

Every message reads WHAT; WHERE (tensor, file); expected and got; REMEDY, on one line. The parts are attributes
too, so that a program can act on them, and ``kind`` is a stable name for each class::

    StockpotError                       exit code 1
    ├── InputError (ValueError)         exit code 2: the user can mend it
    │   ├── UsageError                  arguments that do not fit together
    │   │   ├── UnknownNameError        a method or option that does not exist (nearest name offered)
    │   │   └── ParameterError          a parameter outside its range
    │   ├── RecipeError                 a recipe that cannot be read or does not say what to do
    │   ├── CheckpointError             an input that cannot be opened
    │   │   ├── NotFoundError (FileNotFoundError)
    │   │   ├── UnreadableError (PermissionError)
    │   │   ├── HubError                a model hub that cannot be reached, or answers wrongly
    │   │   ├── NoWeightsError          a folder without weights, or with too many candidates
    │   │   ├── NotAnOutputError        verify was given what stockpot did not make
    │   │   ├── ShardIndexError         a shard index that lies
    │   │   ├── UnsafePickleError       a pickle that asks for code
    │   │   ├── PickleFormatError       a pickle that is no state dict
    │   │   ├── AdapterError            an adapter that is not understood, or does not fit its base
    │   │   ├── TokenizerError          a tokenizer that is not understood, or does not fit its weights
    │   │   └── HeaderError             a safetensors file whose header lies
    │   │       ├── TruncatedFileError, HeaderLengthError, HeaderSyntaxError, DuplicateNameError,
    │   │       └── UnknownDtypeError, BadShapeError, OffsetError, OverlapError, HoleError
    │   ├── AlignmentError              tensors that do not correspond
    │   │   ├── MissingTensorError
    │   │   └── MismatchError
    │   ├── MethodError                 inputs that the method cannot take
    │   ├── NonFiniteError              NaN or Inf in an input, or a result that overflows its dtype
    │   ├── OutputError                 OUT exists, is locked, lies inside an input
    │   │   ├── OutputExistsError (FileExistsError)
    │   │   ├── OutputLockedError
    │   │   └── NoSpaceError
    │   └── MissingExtraError (ImportError)
    ├── RunError (RuntimeError)         exit code 1: it broke while running
    │   ├── InputChangedError           an input was changed while it was read
    │   ├── EvaluatorError              the user's evaluation failed, or returned what is no score
    │   └── DamageError                 verify found damage
    └── Stopped                         130 (SIGINT) or 143 (SIGTERM)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar

PROBLEMS_SHOWN = 10


class StockpotError(Exception):
    """Base of every error that stockpot raises on purpose.

    Arguments: ``what`` happened; ``tensor`` and ``file`` where; ``expected`` and ``got``; ``remedy``, what to do;
    ``problems``, one line for each when there are several.
    """

    kind: ClassVar[str] = "error"
    exit_code: int = 1

    def __init__(
        self,
        what: str,
        *,
        tensor: str | None = None,
        file: str | None = None,
        expected: object = None,
        got: object = None,
        remedy: str | None = None,
        problems: Sequence[str] = (),
    ) -> None:
        self.what = what
        self.tensor = tensor
        self.file = file
        self.expected = None if expected is None else str(expected)
        self.got = None if got is None else str(got)
        self.remedy = remedy
        self.problems = tuple(problems)
        super().__init__(self.line())

    def __str__(self) -> str:
        return self.line()

    def __reduce__(self) -> tuple[object, ...]:
        """From one process to another, part by part: the arguments are keywords."""
        return _rebuilt, (type(self), dict(self.__dict__))

    def line(self) -> str:
        """The message on one line: WHAT; WHERE; expected, got; REMEDY."""
        where = ", ".join(
            part for part in (self.tensor and f"tensor {self.tensor}", self.file and f"file {self.file}") if part
        )
        values = ", ".join(
            part
            for part in (
                self.expected is not None and f"expected {self.expected}",
                self.got is not None and f"got {self.got}",
            )
            if part
        )
        text = "; ".join(part for part in (self.what, where, values, self.remedy) if part)
        return printable(text)

    def lines(self) -> list[str]:
        """The message and up to ten indented problems, as the command line prints them."""
        shown = [f"  {printable(problem)}" for problem in self.problems[:PROBLEMS_SHOWN]]
        more = len(self.problems) - PROBLEMS_SHOWN
        return [self.line(), *shown, *([f"  and {more} more"] if more > 0 else [])]

    def record(self) -> dict[str, object]:
        """The error as data, for ``--json``."""
        return {
            "kind": self.kind,
            "message": self.line(),
            "tensor": self.tensor,
            "file": self.file,
            "expected": self.expected,
            "got": self.got,
            "remedy": self.remedy,
            "problems": list(self.problems),
        }


class InputError(StockpotError, ValueError):
    """The user can mend it: arguments, recipe, inputs, output place."""

    kind = "input"
    exit_code = 2


class UsageError(InputError):
    """Arguments that do not fit together."""

    kind = "usage"


class UnknownNameError(UsageError):
    """A method, parameter or option that does not exist."""

    kind = "unknown_name"


class ParameterError(UsageError):
    """A parameter whose value is not allowed."""

    kind = "parameter"


class RecipeError(InputError):
    """A recipe that cannot be read or does not say what to do."""

    kind = "recipe"


class CheckpointError(InputError):
    """An input that cannot be opened as a checkpoint."""

    kind = "checkpoint"


class NotFoundError(CheckpointError, FileNotFoundError):
    """No such path."""

    kind = "not_found"


class UnreadableError(CheckpointError, PermissionError):
    """A file that may not be read."""

    kind = "unreadable"


class HubError(CheckpointError):
    """A model hub that cannot be reached, answers wrongly, or may not be asked."""

    kind = "hub"


class NoWeightsError(CheckpointError):
    """A folder without weights, or with several candidates."""

    kind = "no_weights"


class NotAnOutputError(CheckpointError):
    """``verify`` was given something that does not say how it was made."""

    kind = "not_an_output"


class ShardIndexError(CheckpointError):
    """A shard index that names files or tensors that are not there, or files outside its folder."""

    kind = "shard_index"


class UnsafePickleError(CheckpointError):
    """A pickle that asks for something other than tensors; nothing of it was run."""

    kind = "unsafe_pickle"


class PickleFormatError(CheckpointError):
    """A pickle that holds no state dict, or is damaged."""

    kind = "pickle_format"


class AdapterError(CheckpointError):
    """An adapter that is not understood, or does not fit its base."""

    kind = "adapter"


class TokenizerError(CheckpointError):
    """A tokenizer that is not understood, or does not fit its weights."""

    kind = "tokenizer"


class HeaderError(CheckpointError):
    """A safetensors file whose header cannot be believed."""

    kind = "header"


class TruncatedFileError(HeaderError):
    """The file ends before its data does."""

    kind = "truncated_file"


class HeaderLengthError(HeaderError):
    """The header's stated length is impossible."""

    kind = "header_length"


class HeaderSyntaxError(HeaderError):
    """The header is not the JSON object that the format asks for."""

    kind = "header_syntax"


class DuplicateNameError(HeaderError):
    """The header names a tensor twice."""

    kind = "duplicate_name"


class UnknownDtypeError(HeaderError):
    """The header names a dtype that the format does not have."""

    kind = "unknown_dtype"


class BadShapeError(HeaderError):
    """A shape that is negative, absurd, or does not fit its bytes."""

    kind = "bad_shape"


class OffsetError(HeaderError):
    """Offsets that run backwards or beyond the file."""

    kind = "offset"


class OverlapError(HeaderError):
    """Two tensors share bytes."""

    kind = "overlap"


class HoleError(HeaderError):
    """Bytes that belong to no tensor."""

    kind = "hole"


class AlignmentError(InputError):
    """Checkpoints whose tensors do not correspond."""

    kind = "alignment"


class MissingTensorError(AlignmentError):
    """A tensor that some input lacks."""

    kind = "missing_tensor"


class MismatchError(AlignmentError):
    """A tensor whose shape, or whose integer values, differ between inputs."""

    kind = "mismatch"


class MethodError(InputError):
    """Inputs that the method cannot take."""

    kind = "method"


class NonFiniteError(InputError):
    """NaN or Inf in an input, or a finite result that overflows the output's dtype."""

    kind = "non_finite"


class OutputError(InputError):
    """The output cannot be written where it was asked for."""

    kind = "output"


class OutputExistsError(OutputError, FileExistsError):
    """Something is there already."""

    kind = "output_exists"


class OutputLockedError(OutputError):
    """Another process is writing there."""

    kind = "output_locked"


class NoSpaceError(OutputError):
    """The disk has too little room, foreseen before the first byte."""

    kind = "no_space"


class MissingExtraError(InputError, ImportError):
    """An optional dependency is not installed."""

    kind = "missing_extra"

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed", remedy=f"pip install 'stockpot[{extra}]'")


class RunError(StockpotError, RuntimeError):
    """It broke while running: a failing disk, a file removed underneath."""

    kind = "run"


class InputChangedError(RunError):
    """An input was changed while it was read; nothing was finished."""

    kind = "input_changed"


class EvaluatorError(RunError):
    """The evaluation of a model failed, or returned what is no score. What was evaluated before is kept."""

    kind = "evaluator"


class DamageError(RunError):
    """``verify`` found bytes that are not what was written."""

    kind = "damage"


class Stopped(StockpotError):
    """Stopped by a signal; what was done so far is kept and the same call goes on from there."""

    kind = "stopped"

    def __init__(self, what: str, *, exit_code: int = 130, remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.exit_code = exit_code


def _rebuilt(kind: type[StockpotError], parts: dict[str, object]) -> StockpotError:
    solid = next(base for base in (OSError, ImportError, Exception) if issubclass(kind, base))
    error: StockpotError = solid.__new__(kind)  # a builtin kind has a memory layout of its own
    error.__dict__.update(parts)
    Exception.__init__(error, error.line())
    return error


def printable(text: str) -> str:
    r"""One line that cannot steer a terminal: control and unprintable characters are escaped.

    >>> printable("two\nlines")
    'two\\nlines'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Each line printable; line breaks stay."""
    return "\n".join(map(printable, text.split("\n")))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` was probably meant to be, or None."""
    close = difflib.get_close_matches(name.replace("-", "_"), sorted(known), n=1, cutoff=0.6)
    return close[0] if close else None


def unknown_name(sort: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name of that sort that does not exist, with the nearest one or the whole list."""
    names = sorted(known)
    close = nearest(name, names)
    remedy = f"did you mean {close}?" if close else f"known: {', '.join(names) or 'none'}"
    return UnknownNameError(f"unknown {sort} {name!r}", remedy=remedy)
