"""The journal: whole lines are believed, torn and corrupted ones and all after them are forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpot.checkpoint._journal import Journal, decode, encode

QUIET = settings(derandomize=True, deadline=None, max_examples=200)
RECORDS = [{"job": "k"}, {"tensor": "layers.0.weight", "digest": "00ff" * 8}, {"gram": '\u00e4 "x" \n y'}]
LINES = [encode(record) for record in RECORDS]
WHOLE = b"".join(LINES)


def test_a_line_is_golden() -> None:
    """Sixteen hexadecimal digits of XXH3-64, a space, compact JSON, a newline."""
    import xxhash

    text = b'{"tensor":"w","digest":"00"}'
    assert encode({"tensor": "w", "digest": "00"}) == xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"
    assert LINES[2].count(b"\n") == 1


def test_round_trip() -> None:
    """What was encoded is decoded, to the last byte."""
    assert decode(WHOLE) == (RECORDS, len(WHOLE))
    assert decode(b"") == ([], 0)


@pytest.mark.parametrize("cut", range(len(WHOLE)))
def test_torn_anywhere(cut: int) -> None:
    """Cut at any byte, the whole lines before stay and the torn one is forgotten."""
    lines = WHOLE[:cut].count(b"\n")
    assert decode(WHOLE[:cut]) == (RECORDS[:lines], len(b"".join(LINES[:lines])))


@pytest.mark.parametrize("at", range(len(WHOLE)))
def test_corrupted_anywhere(at: int) -> None:
    """One flipped bit at any byte: lines before it are believed, it and all after it are not."""
    damaged = WHOLE[:at] + bytes([WHOLE[at] ^ 4]) + WHOLE[at + 1 :]
    before = WHOLE[:at].count(b"\n")
    assert decode(damaged) == (RECORDS[:before], len(b"".join(LINES[:before])))


@QUIET
@given(st.binary(max_size=200), st.integers(0, 3))
def test_garbage_after_whole_lines(garbage: bytes, lines: int) -> None:
    """Any bytes after whole lines change nothing."""
    start = b"".join(LINES[:lines])
    records, intact = decode(start + garbage)
    assert records[:lines] == RECORDS[:lines]
    assert intact >= len(start)


@pytest.mark.parametrize("text", [b"", b"{", b"nothing", b"3", b"[]", b"null", b'"x"', b"[" * 100_000])
def test_a_right_digest_of_something_else(text: bytes) -> None:
    """A line whose digest is right and whose content is no map is forgotten like a torn one."""
    import xxhash

    line = xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"
    assert decode(LINES[0] + line + LINES[1]) == (RECORDS[:1], len(LINES[0]))


@pytest.mark.parametrize(
    "record",
    [{"tensor": "w", "digest": digest} for digest in ("", "d", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "\u0664" * 32)]
    + [{"tensor": "w" * 1001, "digest": "0" * 32}, {"gram": "w" * 1001}, {"tensor": None, "digest": "0" * 32}],
    ids=lambda record: str(record)[:60],
)
def test_a_record_that_nobody_wrote(record: dict[str, object]) -> None:
    """No digest of a tensor, or a name longer than any: forgotten like a torn line, whatever its own digest says."""
    line = encode(record)
    assert decode(LINES[0] + line + LINES[1]) == (RECORDS[:1], len(LINES[0]))
    longest = [encode({"tensor": "w" * 1000, "digest": "09af" * 8}), encode({"gram": "w" * 1000})]
    assert len(decode(b"".join(longest))[0]) == 2


def test_reopened_journal_goes_on_after_whole_lines(tmp_path: Path) -> None:
    """Opening cuts off a torn line; what is committed then follows the whole ones."""
    path = tmp_path / "journal"
    path.write_bytes(LINES[0] + LINES[1][:-5])
    journal = Journal(path)
    assert journal.records == RECORDS[:1]
    journal.commit(LINES[2])
    journal.close()
    assert path.read_bytes() == LINES[0] + LINES[2]
    again = Journal(path)
    assert again.records == [RECORDS[0], RECORDS[2]]
    again.close()


def test_new_journal_is_empty(tmp_path: Path) -> None:
    """Without a file there are no records, and one is made."""
    journal = Journal(tmp_path / "journal")
    assert journal.records == []
    journal.commit(WHOLE)
    journal.close()
    assert (tmp_path / "journal").read_bytes() == WHOLE


def test_long_commit_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that takes only part of the bytes is continued."""
    import os

    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:7])))
    journal = Journal(tmp_path / "journal")
    journal.commit(WHOLE)
    journal.close()
    monkeypatch.undo()
    assert (tmp_path / "journal").read_bytes() == WHOLE


def test_journal_is_not_opened_through_a_symlink(tmp_path: Path) -> None:
    """A symlink in its place is not followed: what it points to keeps its bytes."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"years of work")
    (tmp_path / "journal").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        Journal(tmp_path / "journal")
    assert victim.read_bytes() == b"years of work"
