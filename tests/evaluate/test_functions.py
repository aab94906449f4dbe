"""Functions of the user's as evaluators."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from stockpot import errors
from stockpot.evaluate import Options, load_evaluator, of_function

CODE = """
from pathlib import Path
import beside

def by_dict(weights): return {"kind": 1.0 if isinstance(weights, dict) else 0.0}
def by_name(checkpoint): return 1.0 if isinstance(checkpoint, Path) else 0.0
def by_type(place: Path): return 1.0 if isinstance(place, Path) else 0.0
def with_options(weights, limit=None, seed=3): return {"limit": limit or 0, "seed": seed}
def open_ended(weights, **more): return {"count": len(more)}
def two(a, b): return 0.0
def none(): return 0.0
def only_keyword(*, weights): return 0.0
def fails(weights): raise ValueError("no such column: label")
def leaves(weights): raise SystemExit(3)
def slow(weights):
    while True: pass
def swallows_once(weights):
    try:
        while True: pass
    except Exception: pass
    while True: pass
class Judge:
    @staticmethod
    def of(weights): return beside.VALUE
_hidden = by_dict
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of evaluators, with a module beside it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    (tmp_path / "beside.py").write_text("VALUE = 0.25\n")
    path = tmp_path / "my_eval.py"
    path.write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return path


def test_forms(file: Path) -> None:
    """A state dict; a path where the argument is annotated so or named ``checkpoint``; modules and attributes."""
    for name, form in {"by_dict": "state_dict", "by_name": "checkpoint", "by_type": "checkpoint"}.items():
        for text in (f"{file}:{name}", f"my_eval.py:{name}", f"my_eval:{name}"):
            found = load_evaluator(text)
            assert found.form == form
            assert set(found.evaluate({} if form == "state_dict" else file).values.values()) == {1.0}
    assert load_evaluator("my_eval:Judge.of").evaluate({}).values == {"score": 0.25}


def test_options_by_name(file: Path) -> None:
    """What is given reaches the argument of that name; what the function does not take is refused."""
    assert load_evaluator("my_eval:with_options", Options(limit=7)).evaluate({}).values == {"limit": 7, "seed": 3}
    assert load_evaluator("my_eval:open_ended", Options(limit=7, seed=1)).evaluate({}).values == {"count": 2}
    with pytest.raises(errors.UsageError, match=r"takes no batch.*leave --batch out"):
        load_evaluator("my_eval:with_options", Options(batch=2))


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("my_eval.py:by_dct", errors.UnknownNameError, "did you mean by_dict"),
        ("nowhere.py:f", errors.NotFoundError, "no such file; file nowhere.py"),
        ("nowhere:f", errors.NotFoundError, "no such module; file nowhere"),
        ("nowhere.at.all:f", errors.NotFoundError, "no such module"),
        ("nonsense", errors.UsageError, "--evaluate cannot be read"),
        ("", errors.UsageError, "--evaluate cannot be read"),
        ("my_eval:two", errors.UsageError, "does not take one model"),
        ("my_eval:none", errors.UsageError, "does not take one model"),
        ("my_eval:only_keyword", errors.UsageError, "does not take one model"),
        ("my_eval:beside", errors.UsageError, "is no function"),
    ],
)
def test_what_cannot_be_loaded(text: str, kind: type[errors.StockpotError], says: str, file: Path) -> None:
    """One line each, exit 2."""
    with pytest.raises(kind, match=says) as caught:
        load_evaluator(text)
    assert caught.value.exit_code == 2


def test_code_that_breaks_while_loading(file: Path) -> None:
    """The user's own error is told, with its type."""
    (file.parent / "broken.py").write_text("import not_there_at_all\n")
    with pytest.raises(
        errors.EvaluatorError, match=r"cannot be loaded .ModuleNotFoundError: No module named 'not_there"
    ):
        load_evaluator("broken.py:f")


def test_failures(file: Path) -> None:
    """Exceptions and exits become one line; the cause is kept for -v."""
    with pytest.raises(errors.EvaluatorError, match=r"failed .ValueError: no such column: label") as caught:
        load_evaluator("my_eval:fails").evaluate({})
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(errors.EvaluatorError, match=r"failed .SystemExit: 3"):
        load_evaluator("my_eval:leaves").evaluate({})


def test_hanging(file: Path) -> None:
    """A bound on the time ends an endless loop."""
    begun = time.monotonic()
    with pytest.raises(errors.EvaluatorError, match=r"took too long; expected at most 0.2 s"):
        load_evaluator("my_eval:slow", Options(timeout=0.2)).evaluate({})
    with pytest.raises(errors.EvaluatorError, match=r"took too long"):
        load_evaluator("my_eval:swallows_once", Options(timeout=0.2)).evaluate({})
    assert time.monotonic() - begun < 30  # far more than the alarm, far less than for ever


def test_content_is_name_code_and_options(file: Path) -> None:
    """Another function, other options, other code: other content. A bare callable has none, and is never kept."""
    contents = [
        load_evaluator("my_eval.py:by_dict").content,
        load_evaluator("my_eval.py:with_options").content,
        load_evaluator("my_eval.py:with_options", Options(limit=3)).content,
    ]
    file.write_text(CODE + "\n# changed\n")
    contents.append(load_evaluator("my_eval.py:by_dict").content)
    assert len({repr(content) for content in contents}) == 4
    assert load_evaluator("my_eval.py:by_dict").content == contents[-1]
    assert of_function(lambda weights: 0.0, Options()).content is None
