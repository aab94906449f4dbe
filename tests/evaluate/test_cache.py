"""Results on disk: kept, shared, told of when they cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stockpot import errors
from stockpot.evaluate import ResultCache, Scores, default_cache


def put(cache: ResultCache, mixture: str = "m", evaluator: str = "e", *, logits: bool = False, **values: float) -> None:
    """Keep one result."""
    scores = Scores(values or {"x": 1.5}, np.ones((2, 3), dtype=np.float32), np.array([0, 1]))
    cache.put(mixture, evaluator, scores, label="one", named="eval.py:f", seconds=0.5, logits=logits)


def test_kept_from_one_opening_to_the_next(tmp_path: Path) -> None:
    """Numbers to the last bit, infinities too."""
    path = tmp_path / "deep" / "er" / "results.sqlite"
    put(ResultCache(path), x=0.1 + 0.2, y=float("-inf"))
    found = ResultCache(path).get("m", "e")
    assert found is not None
    assert found.values == {"x": 0.1 + 0.2, "y": float("-inf")}
    assert ResultCache(path).get("m", "other") is None
    assert ResultCache(path).get("other", "e") is None


def test_logits_only_where_asked_for(tmp_path: Path) -> None:
    """They are large; a result without them does not serve who needs them."""
    cache = ResultCache(tmp_path / "r")
    put(cache)
    assert cache.get("m", "e") is not None
    assert cache.get("m", "e", with_logits=True) is None
    put(cache, logits=True)
    found = cache.get("m", "e", with_logits=True)
    assert found is not None
    assert found.logits is not None
    assert found.labels is not None
    assert found.logits.tolist() == [[1.0] * 3] * 2
    assert found.labels.tolist() == [0, 1]


def test_inspected_and_cleared(tmp_path: Path) -> None:
    """What is in it can be listed; clearing says how much was forgotten."""
    cache = ResultCache(tmp_path / "r")
    put(cache, "a", x=1.0)
    put(cache, "b", x=2.0)
    assert [(entry.label, entry.evaluator, entry.values) for entry in cache.entries()] == [
        ("one", "eval.py:f", {"x": 1.0}),
        ("one", "eval.py:f", {"x": 2.0}),
    ]
    assert cache.clear() == 2
    assert ResultCache(tmp_path / "r").entries() == []


def test_digests_are_taken_once(tmp_path: Path) -> None:
    """One for each identity."""
    asked: list[str] = []

    def compute() -> str:
        asked.append("")
        return "d"

    for _ in range(2):
        assert ResultCache(tmp_path / "r").digest("identity", compute) == "d"
    assert len(asked) == 1


WRITER = """
import sys
from pathlib import Path
from stockpot.evaluate import ResultCache, Scores
cache = ResultCache(Path(sys.argv[1]))
for number in range(40):
    mixture = f"{sys.argv[2]}-{number}"
    cache.put(mixture, "e", Scores({"x": float(number)}), label="l", named="n", seconds=0, logits=False)
    assert cache.get(mixture, "e") is not None
"""


def test_several_processes_at_once(tmp_path: Path) -> None:
    """Four writers that open the same new file together: nothing is lost, nobody fails."""
    path = tmp_path / "r"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number)]) for number in range(4)]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 4
    assert len(ResultCache(path).entries()) == 160


@pytest.mark.parametrize(
    "content", [b"this is no database, but long enough to look at" * 30, b"SQLite format 3\0" + b"x" * 200]
)
def test_a_file_that_is_no_cache(content: bytes, tmp_path: Path) -> None:
    """One line, exit 2; the file is left as it is."""
    path = tmp_path / "r"
    path.write_bytes(content)
    with pytest.raises(errors.InputError, match=r"cannot be used.*--cache") as caught:
        ResultCache(path)
    assert caught.value.exit_code == 2
    assert path.read_bytes() == content


def test_a_cache_of_another_version(tmp_path: Path) -> None:
    """Told, not guessed at."""
    import sqlite3

    with sqlite3.connect(tmp_path / "r") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(errors.InputError, match=r"another version; .*expected 1, got 99"):
        ResultCache(tmp_path / "r")


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The stated place, else the user's cache folder."""
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"
    monkeypatch.delenv("STOCKPOT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "stockpot" / "evaluations.sqlite"
    (tmp_path / "stockpot").write_text("in the way")
    with pytest.raises(errors.OutputError, match=r"cannot be made.*--cache"):
        ResultCache(default_cache())
