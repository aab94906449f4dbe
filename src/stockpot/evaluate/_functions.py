"""Evaluation by a Python function of the user's: ``module:function`` or ``file.py:function``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import xxhash

from stockpot import errors
from stockpot.evaluate._base import Form, Options
from stockpot.evaluate._limits import time_limit
from stockpot.evaluate._scores import Scores, scores_of

PATTERN = re.compile(r"(?P<place>.+\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_][\w.]*)", re.DOTALL)


@dataclass(frozen=True)
class FunctionEvaluator:
    """A function of one required argument: a state dict, or a path where it is annotated so or named ``checkpoint``."""

    name: str
    function: Callable[..., object]
    form: Form
    options: Mapping[str, Any]
    source: str | None
    """Digest of the code; None where there is none to be read."""
    timeout: float | None = None

    @property
    def uses_folder(self) -> bool:
        return self.form == "checkpoint"

    @property
    def content(self) -> Mapping[str, Any] | None:
        if self.source is None:
            return None
        function = self.function
        name = getattr(function, "__qualname__", type(function).__qualname__)
        typed = self.name.rpartition(":")[2]  # several may be made by one function
        return {"form": "function", "function": [typed, name], "source": self.source, "options": dict(self.options)}

    def evaluate(self, model: dict[str, Any] | Path, folder: Path | None = None) -> Scores:
        try:
            with time_limit(self.timeout):
                result = self.function(model, **self.options)
        except errors.StockpotError:
            raise
        except (Exception, SystemExit) as error:
            said = f"{type(error).__name__}: {error}".rstrip(": ")
            raise errors.EvaluatorError(
                f"the evaluator failed ({said})", file=self.name, remedy="-v shows where"
            ) from error
        return scores_of(result, self.name)


def is_function(text: str) -> bool:
    """Whether the words look like a function's place."""
    return PATTERN.fullmatch(text) is not None


def load_function(text: str, options: Options) -> FunctionEvaluator:
    """Find a function by its words. UsageError kinds where it is not there or cannot be called with one model."""
    found, source = load_object(text)
    return of_function(found, options, name=text, source=source)


def load_object(text: str) -> tuple[Any, str | None]:
    """Whatever the words name, and the digest of the files of its code (None: there are none)."""
    match = PATTERN.fullmatch(text)
    if match is None:
        raise errors.UsageError("no place of code", expected="module:object or file.py:object", got=repr(text))
    module, file = _module(match["place"], text)
    found: Any = module
    for part in match["name"].split("."):
        if not hasattr(found, part):
            known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise errors.unknown_name(f"function in {match['place']}", match["name"], known)
        found = getattr(found, part)
    digest = xxhash.xxh3_128()
    files = {path.resolve() for path in (file, _defined_in(found)) if path is not None and path.is_file()}
    for path in sorted(files):
        digest.update(path.read_bytes())
    return found, str(digest.hexdigest()) if files else None


def of_function(
    function: Callable[..., object], options: Options, *, name: str | None = None, source: str | None = None
) -> FunctionEvaluator:
    """An evaluator from a callable. Without a ``source`` its results are not kept from one run to the next."""
    name = name or str(getattr(function, "__qualname__", type(function).__qualname__))
    if not callable(function):
        raise errors.UsageError("the evaluator is no function", file=name, got=type(function).__name__)
    form, options_given = _signature(function, options, name)
    return FunctionEvaluator(name, function, form, options_given, source, options.timeout)


def _module(place: str, text: str) -> tuple[ModuleType, Path | None]:
    if not place.endswith(".py"):
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)  # as `python -m` does
        if place.split(".")[0] not in sys.modules and not _is_there(place):
            raise errors.NotFoundError(
                "no such module", file=place, expected="module:function or file.py:function", got=text
            )
        module = _executed(lambda: importlib.import_module(place), text)
        return module, Path(module.__file__) if getattr(module, "__file__", None) else None
    path = Path(place).expanduser()
    if not path.is_file():
        raise errors.NotFoundError("no such file", file=place, expected="file.py:function")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # what lies beside it can be imported, as when the file is run
    name = f"stockpot_evaluator_{xxhash.xxh3_64_hexdigest(str(path.resolve()).encode())}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses and pickles look their module up by name
    loader = specification.loader
    _executed(lambda: loader.exec_module(module), text)
    return module, path


def _defined_in(found: Any) -> Path | None:
    """The file of the code; a module may only pass it on."""
    module = sys.modules.get(str(getattr(found, "__module__", None)))
    file = getattr(module, "__file__", None)
    return Path(file) if file else None


def _is_there(place: str) -> bool:
    try:
        return importlib.util.find_spec(place) is not None
    except (ImportError, ValueError):
        return False


def _executed(load: Callable[[], Any], text: str) -> Any:
    try:
        return load()
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        raise errors.EvaluatorError(
            f"the evaluator cannot be loaded ({said})", file=text, remedy="-v shows where"
        ) from error


def _signature(function: Callable[..., object], options: Options, name: str) -> tuple[Form, dict[str, Any]]:
    """What it takes, and the options that it asks for by name."""
    given = {key: value for key, value in options.given().items() if key != "timeout"}
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin
        return "state_dict", given
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [one for one in parameters if one.default is one.empty and one.kind in (*positional, one.KEYWORD_ONLY)]
    takes_one = any(one.kind in positional or one.kind is one.VAR_POSITIONAL for one in parameters)
    if len(required) > 1 or not takes_one or (required and required[0].kind not in positional):
        raise errors.UsageError(
            "the evaluator does not take one model", file=name, expected="one required argument",
            got=f"({', '.join(str(one) for one in parameters)})",
        )  # fmt: skip
    known = {one.name for one in parameters}
    open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters)
    unknown = [] if open_ended else [key for key in given if key not in known]
    if unknown:
        raise errors.UsageError(
            f"the evaluator takes no {unknown[0]}", file=name, expected=f"an argument named {unknown[0]}",
            remedy=f"leave --{unknown[0]} out, or give the function that argument",
        )  # fmt: skip
    first = (
        required[0] if required else next(one for one in parameters if one.kind in (*positional, one.VAR_POSITIONAL))
    )
    wants_path = first.name == "checkpoint" or first.annotation in (Path, "Path", "pathlib.Path")
    return ("checkpoint" if wants_path else "state_dict"), given
