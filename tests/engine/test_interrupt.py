"""All or nothing: real processes are interrupted, doubled and deceived (killed: tests/safety/test_kills.py)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import stockpot

from ._checkpoints import contents, folder
from ._processes import command, ended, frozen, has_written, journal_lines, lasts, reaches, run, started

LAYERS, ROWS, COLUMNS, MODELS = 48, 400, 1024, 3
"""79 MB for each of four inputs, 79 MB of output."""
OUTPUT_BYTES = LAYERS * ROWS * COLUMNS * 4
SYNC_SECONDS = 1.2
"""A little more than the time after which what is finished is put on disk and journaled."""


def partial(out: Path) -> Path:
    """Where an output under way lies."""
    return out.with_name(out.name + ".partial")


def is_writing(out: Path) -> bool:
    """Whether a merge has begun to write."""
    return any(partial(out).glob("model-*"))


@dataclass(frozen=True)
class Work:
    """A merge that takes seconds: its inputs, what an undisturbed run makes of them, and how long it loads."""

    inputs: tuple[Path, ...]
    loading_seconds: float
    bytes_read: int
    tensors: int
    expected: dict[str, bytes]

    def command(self, out: Path, *more: str, last: Path | None = None) -> list[str]:
        """The command line that does it (with another ``last`` model); one worker, so that it takes its time."""
        base, *models = self.inputs
        models = models if last is None else [*models[:-1], last]
        inputs = ("--method", "model_stock", "--base", base, *models)
        return command("merge", *inputs, "--out", out, "--json", "--workers", "1", *more)


def journaled(process: subprocess.Popen[str], out: Path, share: float, lines: int = 1) -> bool:
    """Wait until more than that many lines are journaled; False if the process ended first.

    However fast the machine, the next line is not the last: the process writes that ``share`` of the output and is
    then held until it is time to journal what it has done.
    """
    if not reaches(process, lambda: has_written(process, int(share * OUTPUT_BYTES))):
        return False
    with frozen(process):
        lasts(process, SYNC_SECONDS)
    return reaches(process, lambda: journal_lines(out) > lines)


def written(path: Path, model: int) -> Path:
    """One checkpoint of many equal layers in two shards; every layer has a ratio of its own."""
    state = {}
    for layer in range(LAYERS):
        value = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(layer))
        if model:
            own = torch.Generator().manual_seed(1000 * model + layer)
            value = value + 0.01 * torch.randn(ROWS, COLUMNS, generator=own) + 0.002 * (layer % 7)
        state[f"layers.{layer:02d}.weight"] = value
    names = sorted(state)
    half = len(names) // 2
    return folder(path, {name: state[name] for name in names[:half]}, {name: state[name] for name in names[half:]})


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """The inputs, and one undisturbed run of them."""
    root = tmp_path_factory.mktemp("work")
    inputs = tuple(written(root / f"m{number}", number) for number in range(MODELS + 1))
    for file in (file for path in inputs for file in path.iterdir()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())  # so that the disk is at rest while the run is measured
    bare = Work(inputs, 0.0, 0, 0, {})
    out = root / "straight" / "merged"
    before = time.monotonic()
    with started(bare.command(out)) as process:
        assert reaches(process, lambda: is_writing(out))
        loaded = time.monotonic()
        result = ended(process)
    assert result.code == 0, result.stderr
    record = result.record
    yield Work(inputs, loaded - before, record["bytes_read"], record["tensors"], contents(out))
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def unfinished(work: Work, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The partial of a run that was killed when part of its work was journaled; to be copied, not used."""
    out = tmp_path_factory.mktemp("unfinished") / "merged"
    with started(work.command(out)) as process:
        assert journaled(process, out, 0.3, lines=3)
        process.kill()
        ended(process)
    assert not out.exists()
    return partial(out)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where the output goes; always of the same name, which stands in its README."""
    (tmp_path / "place").mkdir()
    yield tmp_path / "place" / "merged"
    shutil.rmtree(tmp_path)


def check_whole(work: Work, out: Path) -> None:
    """The bytes of an undisturbed run, and nothing beside them."""
    found = contents(out)
    assert [name for name in work.expected if found.get(name) != work.expected[name]] == []
    assert found.keys() == work.expected.keys()
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name]


def test_killed_again_and_again(work: Work, unfinished: Path, out: Path) -> None:
    """A merge that is killed whenever it has got a little further still ends with the same bytes."""
    shutil.copytree(unfinished, partial(out))
    before = journal_lines(out)
    with started(work.command(out)) as process:
        further = journaled(process, out, 0.2, lines=before)
        process.kill()
        ended(process)
    assert further
    assert not out.exists()
    result = run(work.command(out))
    assert result.code == 0, result.stderr
    assert result.record["resumed_tensors"] > 0
    assert result.record["bytes_read"] < work.bytes_read
    check_whole(work, out)


def torn(line: bytes) -> bytes:
    """A line whose end never reached the disk, and what stood there before."""
    return line[:-5] + b"\0" * 64


def flipped(line: bytes) -> bytes:
    """A line that is still well formed but says another name or digest."""
    place = line.rindex(b'"', 0, len(line) - 3) + 1 if line.count(b'"') > 3 else len(line) // 2
    return line[:place] + (b"0" if line[place : place + 1] != b"0" else b"1") + line[place + 1 :]


@pytest.mark.parametrize("damage", [torn, flipped])
def test_a_damaged_journal_is_believed_up_to_there(
    damage: Callable[[bytes], bytes], work: Work, unfinished: Path, out: Path
) -> None:
    """What follows a damaged line of the journal is done anew; the bytes are those of an undisturbed run."""
    shutil.copytree(unfinished, partial(out))
    journal = partial(out) / ".stockpot-journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    number = next(n for n in range(len(lines) // 2, len(lines)) if b'"tensor"' in lines[n])
    rest = [] if damage is torn else lines[number + 1 :]
    journal.write_bytes(b"".join([*lines[:number], damage(lines[number]), *rest]))
    result = run(work.command(out))
    assert result.code == 0, result.stderr
    assert result.record["resumed_tensors"] == sum(b'"tensor"' in line for line in lines[:number])
    check_whole(work, out)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_stops_it_in_order(number: int, code: int, word: str, work: Work, out: Path) -> None:
    """Its exit code, one line that says how to go on, the object of ``--json``, and a partial from which to resume."""
    with started(work.command(out)) as process:
        assert reaches(process, lambda: has_written(process, int(0.3 * OUTPUT_BYTES)))
        process.send_signal(number)
        result = ended(process)
    assert not out.exists()
    assert partial(out).is_dir()
    again = run(work.command(out))
    assert again.code == 0, again.stderr
    assert again.record["resumed_tensors"] > 0
    assert again.record["bytes_read"] < work.bytes_read
    check_whole(work, out)
    assert result.code == code, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("stockpot: error: ")]
    assert len(lines) == 1, f"stderr: {result.stderr!r}, stdout: {result.stdout!r}"
    assert word in lines[0]
    assert "goes on" in lines[0]
    assert result.record["status"] == "error"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_very_start(number: int, work: Work, out: Path) -> None:
    """A signal while the program is still loading ends it too, and leaves nothing."""
    with started(work.command(out)) as process:
        lasts(process, 0.3 * work.loading_seconds)
        process.send_signal(number)
        result = ended(process)
    assert result.code in (128 + number, -number), result.stderr
    assert list(out.parent.iterdir()) == []


def test_anothers_partial_is_left_alone(work: Work, unfinished: Path, out: Path) -> None:
    """Another job's unfinished output is refused with exit 2 and kept; ``--overwrite`` discards it."""
    shutil.copytree(unfinished, partial(out))
    before = contents(partial(out))
    refused = run(work.command(out, "--granularity", "block"))
    assert refused.code == 2, refused.stderr
    assert "--overwrite" in refused.record["error"]["message"]
    assert not out.exists()
    after = contents(partial(out))
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} <= {".stockpot-lock"}
    accepted = run(work.command(out, "--granularity", "block", "--overwrite"))
    assert accepted.code == 0, accepted.stderr
    assert accepted.record["resumed_tensors"] == 0
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name]
    assert stockpot.verify(out).problems == ()


def test_no_resume_starts_over(work: Work, unfinished: Path, out: Path) -> None:
    """``--no-resume`` forgets an earlier partial of the same job."""
    shutil.copytree(unfinished, partial(out))
    result = run(work.command(out, "--no-resume"))
    assert result.code == 0, result.stderr
    assert result.record["resumed_tensors"] == 0
    assert result.record["bytes_read"] == work.bytes_read
    check_whole(work, out)


def test_workers_and_memory_make_no_other_job(work: Work, unfinished: Path, out: Path) -> None:
    """The rest may be done by another number of workers in other memory: it is the same job."""
    shutil.copytree(unfinished, partial(out))
    result = run(work.command(out, "--workers", "2", "--memory", "64MiB", "--quiet"))
    assert result.code == 0, result.stderr
    assert result.record["resumed_tensors"] > 0
    check_whole(work, out)


def test_two_at_once(work: Work, out: Path) -> None:
    """The second merge into one OUT exits 2 and names the process that holds it; the first is not disturbed."""
    with started(work.command(out)) as first:
        assert reaches(first, lambda: is_writing(out))
        with frozen(first):
            for more in ((), ("--overwrite", "--no-resume")):
                second = run(work.command(out, *more))
                assert second.code == 2, second.stderr
                assert second.record["error"]["kind"] == "output_locked"
                assert f"process {first.pid}" in second.stderr
                assert is_writing(out)
        result = ended(first)
    assert result.code == 0, result.stderr
    check_whole(work, out)


def touched(file: Path) -> None:
    """A newer time alone."""
    os.utime(file, ns=(time.time_ns(), time.time_ns()))


def rewritten(file: Path) -> None:
    """The same bytes in a new file under the same name."""
    fresh = file.with_suffix(".new")
    shutil.copyfile(file, fresh)
    shutil.copystat(file, fresh)
    fresh.replace(file)


def shortened(file: Path) -> None:
    """The second half is gone."""
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("change", [touched, rewritten, shortened])
def test_an_input_changed_meanwhile(change: Callable[[Path], None], work: Work, out: Path, tmp_path: Path) -> None:
    """An input that is not the one that was opened: exit 1, its name, nothing finished."""
    own = tmp_path / "own"
    shutil.copytree(work.inputs[-1], own)
    file = own / "model-00002-of-00002.safetensors"
    with started(work.command(out, last=own)) as process:
        assert reaches(process, lambda: is_writing(out))
        with frozen(process):
            change(file)
        result = ended(process)
    assert result.code == 1, result.stderr
    assert result.record["error"]["kind"] == "input_changed"
    assert str(file) in result.record["error"]["message"]
    assert not out.exists()


def test_a_changed_input_is_another_job(work: Work, unfinished: Path, out: Path) -> None:
    """What was made from an input's earlier content is not gone on with once that input has changed."""
    shutil.copytree(unfinished, partial(out))
    file = work.inputs[-1] / "model-00001-of-00002.safetensors"
    before = file.stat()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    try:
        refused = run(work.command(out))
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert refused.code == 2, refused.stderr
    assert refused.record["error"]["kind"] == "output_exists"
    assert not out.exists()


def test_an_old_output_survives_a_kill(work: Work, unfinished: Path, out: Path, tmp_path: Path) -> None:
    """``--overwrite`` under ``kill -9``: OUT is the old output until it is the new one, and nothing of it is left."""
    files = [tmp_path / f"{name}.safetensors" for name in ("one", "two")]
    for value, file in enumerate(files):
        save_file({"w": torch.full((2,), float(value))}, file)
    stockpot.merge("linear", models=files, out=out)
    old = contents(out)
    shutil.copytree(unfinished, partial(out))
    before = journal_lines(out)
    with started(work.command(out, "--overwrite")) as process:
        assert journaled(process, out, 0.2, lines=before)
        process.kill()
        ended(process)
    assert contents(out) == old
    assert stockpot.verify(out).problems == ()
    result = run(work.command(out, "--overwrite"))
    assert result.code == 0, result.stderr
    assert result.record["resumed_tensors"] > 0
    check_whole(work, out)
