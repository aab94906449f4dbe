"""Programs as evaluators: real processes."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import pytest

from stockpot import errors
from stockpot.evaluate import Options, load_evaluator

PYTHON = shlex.quote(sys.executable)


def command(code: str, tmp_path: Path) -> str:
    """A script that is given the checkpoint."""
    script = tmp_path / "my eval.py"
    script.write_text("import sys, json, time, os, subprocess\nplace = sys.argv[1]\n" + code)
    return f"command:{PYTHON} {shlex.quote(str(script))} {{checkpoint}}"


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("print(0.5)", {"score": 0.5}),
        ("print('loading'); print(json.dumps({'loss': 1, 'acc': .5})); print()", {"loss": 1.0, "acc": 0.5}),
        ("print(len(place))", {"score": 12.0}),
        ("print('x' * 200_000, file=sys.stderr); print(1)", {"score": 1.0}),
    ],
)
def test_the_last_line_counts(code: str, values: dict[str, float], tmp_path: Path) -> None:
    """A number or a map; what comes before is talk."""
    evaluator = load_evaluator(command(code, tmp_path))
    assert evaluator.form == "checkpoint"
    assert evaluator.evaluate(Path("/tmp/a place")).values == values


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("sys.exit('no such column: label')", r"failed \(no such column: label\).*expected exit code 0, got 1"),
        ("os.kill(os.getpid(), 9)", r"failed \(nothing on stderr\).*got -9"),
        ("pass", r"last line is no result.*got nothing"),
        ("print('accuracy 0.9')", r"last line is no result.*got 'accuracy 0.9'"),
        ("print('NaN')", r"no score.*got NaN"),
        ("print('[1]')", r"no score.*list"),
    ],
)
def test_failures(code: str, says: str, tmp_path: Path) -> None:
    """One line: what the program said, and how it ended."""
    with pytest.raises(errors.EvaluatorError, match=says):
        load_evaluator(command(code, tmp_path)).evaluate(Path("place"))


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    """All of them, so that none keeps on writing."""
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(1.5); open({str(mark)!r}, 'w')"
    code = f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    with pytest.raises(errors.EvaluatorError, match=r"too long; .*at most 1 s"):
        load_evaluator(command(code, tmp_path), Options(timeout=1.0)).evaluate(Path("place"))
    time.sleep(1.5)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("command:python eval.py", Options(), "does not say where the checkpoint goes"),
        ("command:python 'eval.py {checkpoint}", Options(), "command cannot be read"),
        ("command:python eval.py {checkpoint}", Options(limit=3), "takes no --limit"),
    ],
)
def test_commands_that_cannot_be(text: str, options: Options, says: str) -> None:
    """Exit 2."""
    with pytest.raises(errors.UsageError, match=says):
        load_evaluator(text, options)


def test_a_program_that_is_not_there() -> None:
    """Told as the system says it."""
    with pytest.raises(errors.EvaluatorError, match=r"cannot be started .No such file"):
        load_evaluator("command:no-such-program-at-all {checkpoint}").evaluate(Path("place"))


def test_content_is_the_words_and_the_script(tmp_path: Path) -> None:
    """Another script under the same words is another evaluator."""
    first = load_evaluator(command("print(1)", tmp_path)).content
    assert load_evaluator(command("print(1)", tmp_path)).content == first
    assert load_evaluator(command("print(2)", tmp_path)).content != first
