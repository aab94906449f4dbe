"""The program: registers the commands, and turns every error into one line and an exit code."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any

import typer

from stockpot import errors
from stockpot._version import __version__
from stockpot.cli import _output
from stockpot.cli.bench import bench
from stockpot.cli.cache import cache
from stockpot.cli.check import check
from stockpot.cli.collect import collect
from stockpot.cli.demo import demo
from stockpot.cli.ensemble import ensemble
from stockpot.cli.evaluate import evaluate
from stockpot.cli.geometry import geometry
from stockpot.cli.landscape import barrier, landscape
from stockpot.cli.merge import merge
from stockpot.cli.methods import methods
from stockpot.cli.soup import soup
from stockpot.cli.verify import verify
from stockpot.cli.wise_ft import wise_ft

app = typer.Typer(
    name="stockpot",
    help="Turn several fine-tuned checkpoints of one base model into one better model.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("merge")(merge)
app.command("check")(check)
app.command("verify")(verify)
app.command("soup")(soup)
app.command("wise-ft")(wise_ft)
app.command("evaluate")(evaluate)
app.command("ensemble")(ensemble)
app.command("geometry")(geometry)
app.command("landscape")(landscape)
app.command("barrier")(barrier)
app.add_typer(bench, name="bench")
app.add_typer(collect, name="collect")
app.command("cache")(cache)
app.command("methods")(methods)
app.command("demo")(demo)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"stockpot {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Turn several fine-tuned checkpoints of one base model into one better model."""


# typer brings click as a dependency or inside itself, by version; this base class is the same in both.
_ClickUsageError: Any = typer.BadParameter.__mro__[1]


GARBAGE = 50_000
"""New objects after which Python looks for cycles: a plan is many objects and no cycles."""


class _TerminatedError(BaseException):
    """SIGTERM arrived."""


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise _TerminatedError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code: 0 done, 2 the user can mend it, 1 all else, 130 and 143 signals."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    verbose = "-v" in given or "--verbose" in given
    # numpy's own threads serve no matrix of a few rows, and cost time at both ends of the program.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # failures are told by us, in one line
    if {"--quiet", "-q", "--json"} & set(given):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    previous, collecting = signal.signal(signal.SIGTERM, _on_sigterm), gc.get_threshold()
    gc.set_threshold(GARBAGE, *collecting[1:])
    try:
        return _run(given)
    except errors.StockpotError as error:
        failure = error
    except _ClickUsageError as error:
        failure = errors.UsageError(
            error.format_message().rstrip("."), got=_value_given(error, given), remedy=_help_hint(error)
        )
    except (KeyboardInterrupt, typer.Abort):
        failure = errors.Stopped("stopped", exit_code=130, remedy=_what_next(given))
    except _TerminatedError:
        failure = errors.Stopped("terminated", exit_code=143, remedy=_what_next(given))
    except MemoryError as error:
        failure = errors.RunError("out of memory", remedy="give a smaller --memory, or fewer --workers")
        failure.__cause__ = error
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else None
        failure = errors.RunError(
            f"the system refused ({error.strerror or error})", file=place, remedy="check the disk, then run it again"
        )
        failure.__cause__ = error
    except Exception as error:
        failure = errors.RunError(
            f"unexpected: {type(error).__name__}: {error}", remedy="run it again with -v and report what it prints"
        )
        failure.__cause__ = error
    finally:
        signal.signal(signal.SIGTERM, previous)
        gc.set_threshold(*collecting)
    if verbose:
        traceback.print_exception(failure)
    _output.print_error(
        failure, command=next((word for word in given if not word.startswith("-")), ""), json="--json" in given
    )
    return failure.exit_code


def _run(arguments: list[str]) -> int:
    result = typer.main.get_command(app).main(args=arguments, prog_name="stockpot", standalone_mode=False)
    if result == 130:  # typer takes Ctrl-C for an exit of its own
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


_GO_ON = ("merge", "soup", "wise-ft", "evaluate", "ensemble", "landscape", "barrier", "bench")
"""Commands that keep what they have done."""


def _what_next(given: Sequence[str]) -> str:
    kept = given[0] in _GO_ON and "none" not in given
    return "the same command goes on from here" if kept else "run it again"


def _value_given(error: Any, given: Sequence[str]) -> str | None:
    """The word after the option at fault."""
    names = getattr(getattr(error, "param", None), "opts", ())
    place = next((i for i, word in enumerate(given[:-1]) if word in names), None)
    return None if place is None else repr(given[place + 1])


def _help_hint(error: Any) -> str:
    path = error.ctx.command_path if error.ctx is not None else "stockpot"
    return f"see {path} --help"
