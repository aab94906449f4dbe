"""What others put at OUT, beside it or into its partial while a merge runs or waits: it stays, and leads nowhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from stockpot import errors
from stockpot.checkpoint import Staging, repair
from stockpot.checkpoint._journal import encode
from stockpot.checkpoint._replacing import JOURNAL

RECORD = {"tensor": "w", "digest": "0" * 32}


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """Nothing here waits for anybody."""
    signal.alarm(20)
    yield
    signal.alarm(0)


def begun(out: Path, name: str = "m.safetensors") -> Staging:
    """An output with one file written."""
    staging = Staging(out, "key")
    staging.create(name, 4)
    staging.write(name, 0, memoryview(b"abcd"))
    return staging


def waiting(out: Path, name: str = "m.safetensors") -> Path:
    """A partial that was stopped; its folder."""
    staging = begun(out, name)
    staging.finish(RECORD)
    staging.keep()
    return out.with_name(out.name + ".partial")


def test_a_folder_that_came_to_lie_at_out(tmp_path: Path) -> None:
    """It is the user's, and stays; the partial too, for the next run."""
    out = tmp_path / "out"
    staging = begun(out)
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(errors.RunError, match="something else was put where the output goes"):
        staging.commit()
    staging.keep()
    assert (out / "thesis.tex").read_text() == "mine"
    assert (tmp_path / "out.partial" / "m.safetensors").read_bytes() == b"abcd"


def test_a_file_that_came_to_lie_at_out(tmp_path: Path) -> None:
    """The same of an output of one file."""
    out = tmp_path / "o.safetensors"
    staging = begun(out, out.name)
    out.write_text("mine")
    with pytest.raises(errors.RunError, match="something else"):
        staging.commit(out.name)
    staging.keep()
    assert out.read_text() == "mine"


def test_another_output_that_took_the_old_ones_place(tmp_path: Path) -> None:
    """With --overwrite, it is the old OUT that was seen which is replaced, no other."""
    out = tmp_path / "out"
    out.mkdir()
    staging = begun(out)
    out.rename(tmp_path / "elsewhere")
    out.mkdir()
    (out / "stockpot.json").write_text("{}")
    with pytest.raises(errors.RunError, match="something else"):
        staging.commit()
    staging.keep()
    assert (out / "stockpot.json").exists()


def test_an_old_output_that_went_away(tmp_path: Path) -> None:
    """Then there is nothing to replace."""
    out = tmp_path / "out"
    out.mkdir()
    staging = begun(out)
    out.rmdir()
    staging.commit()
    assert [path.name for path in out.iterdir()] == ["m.safetensors"]


def test_a_link_for_a_folder_in_the_partial(tmp_path: Path) -> None:
    """Nothing is written through it: the partial is started over."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "notes.txt").write_text("mine")
    partial = waiting(tmp_path / "out")
    (partial / "sub").symlink_to(theirs)
    staging = begun(tmp_path / "out")
    assert staging.finished == []
    staging.add_file("sub/notes.txt", b"written")
    staging.commit()
    assert (theirs / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "out" / "sub").is_symlink()


def test_a_link_for_a_pickle_in_the_partial(tmp_path: Path) -> None:
    """The same of an archive that torch writes."""
    theirs = tmp_path / "theirs"
    theirs.write_text("mine")
    out = tmp_path / "o.pt"
    (waiting(out, "other") / "o.pt").symlink_to(theirs)
    staging = Staging(out, "key")
    staging.create_pickle("o.pt", [("w", "F32", (2, 2))], {})
    staging.keep()
    assert theirs.read_text() == "mine"


def test_what_lies_in_the_partial_beside_ours(tmp_path: Path) -> None:
    """No part of OUT: a side file that is none any more, or something planted."""
    partial = waiting(tmp_path / "out")
    (partial / "modeling_other.py").write_text("x")
    (partial / "extra").mkdir()
    (partial / "extra" / "more.py").write_text("x")
    begun(tmp_path / "out").commit()
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == ["m.safetensors"]


@pytest.mark.parametrize("place", ["out", "out.partial"])
def test_a_pipe_for_a_journal(place: str, tmp_path: Path) -> None:
    """Nobody waits for what comes out of it."""
    (tmp_path / place).mkdir()
    os.mkfifo(tmp_path / place / JOURNAL)
    repair(tmp_path / "out")
    if place == "out.partial":
        with pytest.raises(errors.OutputError, match="cannot be written there"):
            Staging(tmp_path / "out", "key")


def test_a_backup_that_a_strangers_journal_names(tmp_path: Path) -> None:
    """A downloaded OUT cannot say that OUT.old, which is the user's, was to be removed."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).write_bytes(encode({"closing": "out.old", "file": None, "old": "0" * 32}))
    (tmp_path / "out.old").mkdir()
    (tmp_path / "out.old" / "stockpot.json").write_text("{}")
    repair(tmp_path / "out")
    assert (tmp_path / "out.old" / "stockpot.json").exists()


def test_a_partial_that_holds_something_of_the_users(tmp_path: Path) -> None:
    """A record that it was done with removes what we make, nothing else."""
    (tmp_path / "o.safetensors").write_text("x")
    partial = tmp_path / "o.safetensors.partial"
    partial.mkdir()
    (partial / "mine.txt").write_text("mine")
    (partial / JOURNAL).write_bytes(encode({"closing": "", "file": "nothing", "old": ""}))
    repair(tmp_path / "o.safetensors")
    assert (partial / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["x" * 5000, "../theirs", "/etc", "a\0b", "..", "\ud800" * 100])
def test_names_in_a_record_that_no_file_beside_another_has(name: str, tmp_path: Path) -> None:
    """They are not believed, and stop nobody."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "o.safetensors").write_text("x")
    partial = tmp_path / "o.safetensors.partial"
    partial.mkdir()
    for record in ({"closing": name, "file": None, "old": ""}, {"closing": "", "file": name, "old": ""}):
        (partial / JOURNAL).write_bytes(encode({"job": "key"}) + _line(record))
        repair(tmp_path / "o.safetensors")
        assert partial.is_dir()
    assert (tmp_path / "theirs").is_dir()


def _line(record: dict[str, object]) -> bytes:
    """A line of a journal, with escapes: half a surrogate has no bytes."""
    import json

    import xxhash

    text = json.dumps(record).encode()
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


def test_a_journal_of_somebody_else_is_left_as_it_is(tmp_path: Path) -> None:
    """A folder of that name, with a file of that name, is not ours to cut."""
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / JOURNAL).write_text("my own journal\n")
    (partial / "mine.txt").write_text("mine")
    with pytest.raises(errors.OutputExistsError):
        Staging(tmp_path / "out", "key")
    assert (partial / JOURNAL).read_text() == "my own journal\n"


def test_a_host_that_changes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop between two networks still finishes."""
    staging = begun(tmp_path / "out")
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    staging.commit()
    assert (tmp_path / "out" / "m.safetensors").exists()
