"""OUT.partial: one writer, all or nothing, what was there before stays."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stockpot import errors
from stockpot.checkpoint import Staging, _replacing, _staging, partial_of, repair, require_outside
from stockpot.checkpoint._journal import decode

HOLD = """
import sys, time
from pathlib import Path
from stockpot.checkpoint import Staging
staging = Staging(Path(sys.argv[1]), "key")
staging.create("w", 4, b"")
print("held", flush=True)
time.sleep(60)
"""


def filled(out: Path, content: bytes = b"new!", key: str = "key", **options: bool) -> Staging:
    """A staging with one finished file of weights and a mark."""
    staging = Staging(out, key, **options)
    staging.create("w", len(content), content[:2])
    staging.write("w", 2, memoryview(content[2:]))
    staging.finish({"tensor": "w", "digest": "d" * 32})
    staging.add_file("stockpot.json", b"{}")
    return staging


def old_output(out: Path) -> None:
    """An earlier output."""
    out.mkdir()
    (out / "stockpot.json").write_text("old")
    (out / "w").write_text("old!")


def test_commit(tmp_path: Path) -> None:
    """OUT is there with what was written, and nothing else: no partial, no journal, no lock."""
    out = tmp_path / "out"
    filled(out).commit()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"w": b"new!", "stockpot.json": b"{}"}
    assert list(tmp_path.iterdir()) == [out]


def test_commit_of_one_file(tmp_path: Path) -> None:
    """One file alone becomes OUT."""
    out = tmp_path / "out.safetensors"
    filled(out).commit(one_file="w")
    assert out.read_bytes() == b"new!"
    assert list(tmp_path.iterdir()) == [out]


def test_created_files_have_their_size_at_once(tmp_path: Path) -> None:
    """A file is allocated whole, with its first bytes, before anything else is written."""
    staging = Staging(tmp_path / "out", "key")
    staging.create("w", 100_000, b"head")
    found = (partial_of(tmp_path / "out") / "w").stat()
    assert found.st_size == 100_000
    assert found.st_blocks * 512 >= 100_000
    assert staging.read("w", 0, 6) == b"head\0\0"
    staging.discard()


def test_journal_follows_the_bytes(tmp_path: Path) -> None:
    """After a flush the journal names the job and what is finished, in order."""
    staging = filled(tmp_path / "out")
    staging.finish({"tensor": "v", "digest": "e" * 32})
    staging.flush()
    records, _ = decode((partial_of(tmp_path / "out") / _staging.JOURNAL).read_bytes())
    assert records == [{"job": "key"}, {"tensor": "w", "digest": "d" * 32}, {"tensor": "v", "digest": "e" * 32}]
    staging.discard()


def test_nothing_is_journaled_before_its_bytes_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal line is written only after the files were synced."""
    calls: list[str] = []
    real = os.fdatasync
    staging = Staging(tmp_path / "out", "key")
    staging.create("w", 4, b"")

    def watched(fd: int) -> None:
        calls.append("weights" if Path(f"/proc/self/fd/{fd}").readlink().name == "w" else "journal")
        real(fd)

    monkeypatch.setattr(os, "fdatasync", watched)
    staging.write("w", 0, memoryview(b"abcd"))
    staging.finish({"tensor": "w"})
    staging.flush()
    assert calls == ["weights", "journal"]
    staging.discard()


def test_second_opener_is_refused(tmp_path: Path) -> None:
    """While one writes, another is refused and told who holds it, with --overwrite too; afterwards it may."""
    out = tmp_path / "out"
    first = filled(out)
    for options in ({}, {"overwrite": True}, {"resume": False}):
        with pytest.raises(errors.OutputLockedError, match=f"process {os.getpid()}"):
            Staging(out, "key", **options)
    first.commit()
    assert (out / "w").read_bytes() == b"new!"


def test_lock_of_another_process_dies_with_it(tmp_path: Path) -> None:
    """Another process's lock is respected; killed outright it holds nothing, and its work is continued."""
    out = tmp_path / "out"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(errors.OutputLockedError, match=f"process {other.pid}"):
            Staging(out, "key")
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert other.stdout is not None
        other.stdout.close()
    filled(out).commit()
    assert (out / "w").read_bytes() == b"new!"


def test_same_job_continues(tmp_path: Path) -> None:
    """What a kept partial has finished is there for the same job, bytes and records."""
    out = tmp_path / "out"
    filled(out).keep()
    again = Staging(out, "key")
    assert again.finished == [{"tensor": "w", "digest": "d" * 32}]
    again.create("w", 4, b"ne")
    assert again.read("w", 0, 4) == b"new!"
    again.commit()
    assert (out / "w").read_bytes() == b"new!"


@pytest.mark.parametrize("damage", ["gone", "cut", "longer"])
def test_records_of_a_file_that_is_not_whole_are_not_believed(damage: str, tmp_path: Path) -> None:
    """A weight file that is gone or cut holds nothing finished: zeros are never taken for done."""
    out = tmp_path / "out"
    filled(out, b"new content").keep()
    file = partial_of(out) / "w"
    if damage == "gone":
        file.unlink()
    else:
        os.truncate(file, 5 if damage == "cut" else 50)
    again = Staging(out, "key")
    again.create("w", 11, b"ne")
    whole = again.read("w", 0, 11) == b"new content"
    assert again.finished == [] or whole
    again.discard()


def test_no_resume_starts_over(tmp_path: Path) -> None:
    """Without resuming nothing of the partial is left."""
    out = tmp_path / "out"
    filled(out).keep()
    again = Staging(out, "key", resume=False)
    assert again.finished == []
    assert sorted(path.name for path in partial_of(out).iterdir()) == [_staging.JOURNAL, _staging.LOCK]
    again.discard()


def test_other_job_is_refused_and_the_partial_kept(tmp_path: Path) -> None:
    """Another job's partial is refused, byte for byte kept, and discarded on demand only."""
    out = tmp_path / "out"
    filled(out).keep()
    before = {p.name: p.read_bytes() for p in partial_of(out).iterdir() if p.name != _staging.LOCK}
    for options in ({}, {"resume": False}):
        with pytest.raises(errors.OutputExistsError, match="another job"):
            Staging(out, "other", **options)
    assert {p.name: p.read_bytes() for p in partial_of(out).iterdir() if p.name != _staging.LOCK} == before
    other = Staging(out, "other", overwrite=True)
    assert other.finished == []
    other.discard()


def test_discard_removes_what_this_run_made(tmp_path: Path) -> None:
    """A partial made by this run is removed."""
    filled(tmp_path / "out").discard()
    assert list(tmp_path.iterdir()) == []


def test_discard_keeps_what_was_there(tmp_path: Path) -> None:
    """A partial of an earlier run stays with all that it had finished."""
    out = tmp_path / "out"
    filled(out).keep()
    again = Staging(out, "key")
    again.create("w", 4, b"ne")
    again.discard()
    assert (partial_of(out) / "w").read_bytes() == b"new!"
    last = Staging(out, "key")
    assert last.finished == [{"tensor": "w", "digest": "d" * 32}]
    last.discard()


@pytest.mark.parametrize("exchange", [True, False])
def test_old_output_is_replaced_whole(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old OUT is replaced, with the system's exchange or with two renames; nothing of it is left."""
    if not exchange:
        monkeypatch.setattr(_replacing, "exchange", lambda *_: False)
    out = tmp_path / "out"
    old_output(out)
    (out / "sub").mkdir()
    filled(out).commit()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"w": b"new!", "stockpot.json": b"{}"}
    assert list(tmp_path.iterdir()) == [out]


def can_exchange(folder: Path) -> bool:
    """Whether the system can, asked without the code under test."""
    for name in ("left", "right"):
        (folder / name).mkdir()
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    done = call is not None and call(-100, bytes(folder / "left"), -100, bytes(folder / "right"), 2) == 0
    assert done or call is None or ctypes.get_errno() in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
    return done


def test_exchange_is_one_step(tmp_path: Path) -> None:
    """Where the system can exchange, there is no moment without OUT."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "1").touch()
    if not can_exchange(tmp_path):
        pytest.skip("this system or file system cannot exchange two names (renameat2)")
    assert _replacing.exchange(one, two)
    assert (two / "1").exists()
    assert not (one / "1").exists()


def test_failure_before_the_rename_changes_nothing(tmp_path: Path) -> None:
    """What breaks before the rename leaves the old OUT and the partial."""
    out = tmp_path / "out"
    old_output(out)
    staging = filled(out)

    def broken() -> None:
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        staging.commit(before_rename=broken)
    assert (out / "w").read_text() == "old!"
    staging.keep()
    assert Staging(out, "key").finished == [{"tensor": "w", "digest": "d" * 32}]


def test_cut_between_the_two_renames_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off between moving the old OUT away and the new one in, the old one comes back on the next run."""
    monkeypatch.setattr(_replacing, "exchange", lambda *_: False)
    out = tmp_path / "out"
    old_output(out)
    staging = filled(out)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self == partial_of(out):
            raise OSError(errno.EIO, "power cut")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(errors.RunError):
        staging.commit()
    staging.keep()
    monkeypatch.setattr(Path, "rename", real)
    repair(out)
    assert (out / "w").read_text() == "old!"
    assert not (tmp_path / "out.old").exists()


def test_repair_leaves_others_alone(tmp_path: Path) -> None:
    """A folder OUT.old that no merge has put aside stays where it is, made by stockpot or not, beside an OUT or not."""
    out, old = tmp_path / "out", tmp_path / "out.old"
    old.mkdir()
    (old / "thesis.txt").touch()
    repair(out)
    assert old.is_dir()
    (old / "stockpot.json").touch()
    repair(out)
    assert old.is_dir()
    out.mkdir()
    repair(out)
    assert old.is_dir()


def test_what_lies_at_the_place_of_the_old_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An OUT.old of the user is not removed to make room where two renames are needed; without it the merge ends."""
    monkeypatch.setattr(_replacing, "exchange", lambda *_: False)
    out, old = tmp_path / "out", tmp_path / "out.old"
    old_output(out)
    old.mkdir()
    (old / "stockpot.json").write_text("of last year")
    staging = filled(out)
    with pytest.raises(errors.RunError, match=r"out\.old.*move it away"):
        staging.commit()
    staging.keep()
    assert (old / "stockpot.json").read_text() == "of last year"
    assert (out / "w").read_text() == "old!"
    old.rename(tmp_path / "elsewhere")
    filled(out).commit()
    assert (out / "w").read_bytes() == b"new!"


@pytest.mark.parametrize(("code", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EIO, "check the disk")])
@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "posix_fallocate", "fsync"])
def test_failing_disk(call: str, code: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails at any step is one error of ours with the reason and what to do; there is no OUT."""
    out = tmp_path / "out"
    staging = Staging(out, "key")

    def broken(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    def all_steps() -> None:
        staging.create("w", 4, b"ne")
        staging.write("w", 2, memoryview(b"w!"))
        staging.finish({"tensor": "w"})
        staging.flush()
        staging.add_file("x", b"y")
        staging.commit()

    monkeypatch.setattr(os, call, broken)
    with pytest.raises(errors.RunError, match=os.strerror(code)) as caught:
        all_steps()
    assert caught.value.exit_code == 1
    assert caught.value.file is not None
    assert str(tmp_path) in caught.value.file
    if call != "fdatasync" or code == errno.EIO:
        assert remedy in caught.value.line()
    monkeypatch.undo()
    assert not out.exists()
    staging.discard()


def test_sync_failing_in_the_background_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync that failed once fails the merge, though a later one would succeed: the kernel reports it only once."""
    monkeypatch.setattr(_staging, "SYNC_SECONDS", 0.01)
    staging = Staging(tmp_path / "out", "key")
    staging.create("w", 4, b"")
    real = os.fdatasync
    failed: list[int] = []

    def once(fd: int) -> None:
        if not failed:
            failed.append(fd)
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fdatasync", once)
    staging.finish({"tensor": "w"})
    assert staging._syncer is not None
    staging._syncer.join(5)
    with pytest.raises(errors.RunError, match="Input/output error"):
        staging.commit()
    assert not (tmp_path / "out").exists()
    staging.discard()


@pytest.mark.parametrize("name", [_staging.LOCK, _staging.JOURNAL, "w", "stockpot.json"])
def test_nothing_is_written_through_a_symlink(name: str, tmp_path: Path) -> None:
    """A symlink anywhere in the partial is refused or replaced; what it points to keeps its bytes."""
    out = tmp_path / "out"
    victim = tmp_path / "victim"
    filled(out).keep()
    content = (partial_of(out) / name).read_bytes() or b"years of work"
    victim.write_bytes(content)
    (partial_of(out) / name).unlink()
    (partial_of(out) / name).symlink_to(victim)
    refusal = None
    try:
        staging = filled(out, b"NEW!")
        staging.add_file("stockpot.json", b"changed")
        staging.finish({"tensor": "more"})
        staging.commit()
    except (errors.StockpotError, OSError) as error:
        refusal = str(error)
    assert refusal is None or name in refusal or "symbolic" in refusal
    assert victim.read_bytes() == content


@pytest.mark.parametrize(
    ("out", "given", "free"),
    [
        ("out", ["a", "b"], True),
        ("a", ["a"], False),
        ("a/out", ["a"], False),
        (".", ["a"], False),
        ("a/../a/x", ["a"], False),
        ("ab", ["a"], True),
        ("a", ["ab"], True),
        ("link/out", ["a"], False),
        ("out", ["link"], True),
        ("files/out", ["files/m.safetensors"], True),
        ("files", ["files/m.safetensors"], False),
        ("out", ["out.partial"], False),
        ("out", ["out.partial/x"], False),
        ("out", ["out.old"], False),
        ("out", ["out.older"], True),
    ],
)
def test_output_and_inputs(out: str, given: list[str], free: bool, tmp_path: Path) -> None:
    """Neither may lie inside the other; names that begin alike are no matter."""
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    inputs = [tmp_path / name for name in given]
    if free:
        require_outside(tmp_path / out, inputs)
    else:
        with pytest.raises(errors.OutputError, match="inside"):
            require_outside(tmp_path / out, inputs)


def test_one_thread_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many workers finish something at once: a second one would outlive the output and use others' files."""
    start = threading.Thread.start

    def slowly(thread: threading.Thread) -> None:
        if thread.name == "stockpot-sync":
            time.sleep(0.05)
        start(thread)

    def syncing() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "stockpot-sync"}

    staging, others = Staging(tmp_path / "out", "job"), syncing()
    monkeypatch.setattr(threading.Thread, "start", slowly)
    workers = [threading.Thread(target=staging.finish, args=({"gram": str(n)},)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(syncing() - others) == 1
    staging.keep()
    assert not syncing() - others
