"""Where the output may not go: what is there stays byte for byte, and inputs are never touched."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.safety._mounts import mounted

from ._kitchen import Kitchen, Program, check_error, load, numbers, save, snapshot


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", ["thesis.txt", "model.safetensors", ".hidden", "sub/x"])
def test_folder_of_someone_else(content: str, overwrite: bool, program: Program, kitchen: Kitchen) -> None:
    """A folder that stockpot did not make is not replaced, with --overwrite neither."""
    file = kitchen.out / content
    file.parent.mkdir(parents=True)
    file.write_text("years of work")
    says = ["exists", "/out"] + (["not made by stockpot"] if overwrite else ["--overwrite"])
    program.refuses(*kitchen.stock(*(["--overwrite"] if overwrite else [])), kind="output_exists", says=says)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["out", "out.safetensors", "out.pt"])
def test_file_of_someone_else(name: str, overwrite: bool, program: Program, kitchen: Kitchen) -> None:
    """A file that stockpot did not make is not replaced, with --overwrite neither."""
    out = kitchen.root / name
    out.write_bytes(b"years of work")
    program.refuses(
        *kitchen.stock(*(["--overwrite"] if overwrite else []), out=out), kind="output_exists", says=["exists", name]
    )


def test_weights_of_someone_else(program: Program, kitchen: Kitchen) -> None:
    """A right safetensors file, and a right pickle, that stockpot did not make are not replaced."""
    save({"w": numbers(2)}, kitchen.root / "out.safetensors")
    torch.save({"w": numbers(2)}, kitchen.root / "out.pt")
    for name in ("out.safetensors", "out.pt"):
        program.refuses(
            *kitchen.stock("--overwrite", out=kitchen.root / name), kind="output_exists", says=["not made by"]
        )


@pytest.mark.parametrize("kind", ["no seal", "another's seal", "compressed", "pipe"])
def test_an_archive_that_names_us(kind: str, program: Program, kitchen: Kitchen) -> None:
    """A .pt with a member of provenance, but without the seal of its bytes, is somebody else's; a pipe is waited for by
    nobody."""
    out = kitchen.root / "out.pt"
    if kind == "pipe":
        os.mkfifo(out)
    else:
        torch.save({"w": numbers(2)}, out)
        with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED) as archive:
            archive.writestr("out/stockpot.json", "{}")
            archive.comment = b"" if kind == "no seal" else b"stockpot seal " + b"0" * 32
    program.refuses(*kitchen.stock("--overwrite", out=out), kind="output_exists", says=["not made by"])


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("target", ["elsewhere", "nowhere", "a", "file"])
def test_symlink(target: str, overwrite: bool, program: Program, kitchen: Kitchen) -> None:
    """Nothing is written through a symlink."""
    (kitchen.root / "elsewhere").mkdir()
    (kitchen.root / "file").write_text("x")
    kitchen.out.symlink_to(target)
    outcome = program(*kitchen.stock(*(["--overwrite"] if overwrite else [])))
    check_error(outcome, 2, ["/out"])
    assert kitchen.out.is_symlink()
    assert list((kitchen.root / "elsewhere").iterdir()) == []
    assert not (kitchen.root / "out.partial").exists()


def test_own_output_without_overwrite(program: Program, kitchen: Kitchen) -> None:
    """An earlier output stays as it is unless --overwrite is given."""
    program.does(*kitchen.stock())
    program.refuses(*kitchen.stock(), kind="output_exists", says=["exists", "--overwrite"])
    program.refuses(*kitchen.soup(), kind="output_exists", says=["exists", "--overwrite"])


@pytest.mark.parametrize("name", ["out", "out.safetensors", "out.pt"])
def test_own_output_is_replaced(name: str, program: Program, kitchen: Kitchen) -> None:
    """--overwrite replaces an earlier output whole: no file of the old one is left, nothing else is either."""
    out = kitchen.root / name
    program.does(*kitchen.stock(out=out))
    if out.is_dir():
        (out / "added-later.txt").write_text("x")
    program.does(*kitchen.soup("--overwrite", out=out))
    fresh = kitchen.root / ("fresh" + out.suffix)
    program.does(*kitchen.soup(out=fresh))
    if out.is_dir():
        assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in fresh.iterdir())
        assert (out / "model.safetensors").read_bytes() == (fresh / "model.safetensors").read_bytes()
    else:
        assert out.read_bytes() == fresh.read_bytes()
    assert sorted(path.name for path in kitchen.root.iterdir()) == sorted(["a", "b", "base", name, fresh.name])


def test_empty_folder_is_replaced_with_overwrite_only(program: Program, kitchen: Kitchen) -> None:
    """An empty folder is something that is there."""
    kitchen.out.mkdir()
    program.refuses(*kitchen.stock(), kind="output_exists", says=["exists", "--overwrite"])
    program.does(*kitchen.stock("--overwrite"))
    assert len(load(kitchen.out)) == 3


def test_failed_overwrite_keeps_the_old_output(program: Program, kitchen: Kitchen) -> None:
    """A refusal midway leaves the earlier output byte for byte."""
    program.does(*kitchen.stock())
    kitchen.change(kitchen.b, norm__weight=torch.full((4,), float("nan")))
    program.refuses(*kitchen.stock("--overwrite"), kind="non_finite", says=["norm.weight"])


INSIDE = {
    "the base": "base",
    "a model": "a",
    "inside a model": "a/out",
    "deep inside a model": "a/x/y/out",
    "inside by a detour": "base/../a/out",
    "above the inputs": "../in",
    "one file inside a model": "a/out.safetensors",
    "the very file": "a/model.safetensors",
    "by a symlink": "link/out",
    "by the absolute path": None,
}


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("case", INSIDE)
def test_output_and_inputs_inside_each_other(
    case: str, dry: list[str], overwrite: list[str], program: Program, kitchen: Kitchen
) -> None:
    """OUT inside an input, an input inside OUT, or OUT an input: refused, however the path is written."""
    (kitchen.root / "link").symlink_to("a")
    where = INSIDE[case]
    out = kitchen.a / "out" if where is None else where
    if where == "../in":
        out = kitchen.root
    arguments = ["merge", "--method", "model_stock", "--base", "base", "a", "b", "--out", out]
    program.refuses(*arguments, *dry, *overwrite, kind="output", says=["inside", "input", "--out"])


@pytest.mark.parametrize("out", [".", "/", "..", ""])
def test_output_without_a_name(out: str, program: Program, kitchen: Kitchen) -> None:
    """The current folder, its parent and the root are refused like any folder that is there."""
    inputs = [kitchen.a, kitchen.b]
    with tempfile.TemporaryDirectory() as elsewhere:
        os.chdir(elsewhere)
        outcome = program("merge", "--method", "linear", *inputs, "--out", out, "--overwrite")
        assert list(Path(elsewhere).iterdir()) == []
    check_error(outcome, 2, [])


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250, "a/model.safetensors/out", "\0", "x/" * 3000 + "out"])
def test_output_that_cannot_be_made(name: str, program: Program, kitchen: Kitchen) -> None:
    """A name that the system cannot have is refused before anything is read."""
    before = snapshot(kitchen.root)
    outcome = program("merge", "--method", "linear", kitchen.a, kitchen.b, "--out", f"{kitchen.root}/{name}")
    check_error(outcome, 2, [])
    assert snapshot(kitchen.root) == before


def test_file_input_beside_the_output(program: Program, kitchen: Kitchen) -> None:
    """An input that is one file does not close its folder for the output."""
    file = save(kitchen.tensors(1), kitchen.root / "files" / "m.safetensors")
    program.does("merge", "--method", "linear", file, kitchen.b, "--out", kitchen.root / "files" / "out")


# What lies at OUT.partial and OUT.old.


@pytest.mark.parametrize("arguments", [[], ["--no-resume"], ["--dry-run"]])
def test_foreign_folder_at_the_place_of_the_partial(arguments: list[str], program: Program, kitchen: Kitchen) -> None:
    """A folder named OUT.partial that stockpot did not make stays byte for byte."""
    partial = kitchen.root / "out.partial"
    partial.mkdir()
    (partial / "thesis.txt").write_text("years of work")
    if arguments == ["--dry-run"]:
        before = snapshot(kitchen.root)
        program(*kitchen.stock(*arguments))
        assert snapshot(kitchen.root) == before
        return
    outcome = program.refuses(*kitchen.stock(*arguments), kind="output_exists", says=["out.partial"])
    assert outcome.code == 2


def test_foreign_folder_at_the_place_of_the_partial_with_overwrite(program: Program, kitchen: Kitchen) -> None:
    """--overwrite discards another job's partial, but no folder that is none."""
    partial = kitchen.root / "out.partial"
    partial.mkdir()
    (partial / "thesis.txt").write_text("years of work")
    program.refuses(*kitchen.stock("--overwrite"), kind="output_exists", says=["out.partial"])


def test_file_at_the_place_of_the_partial(program: Program, kitchen: Kitchen) -> None:
    """A file named OUT.partial is refused and kept."""
    (kitchen.root / "out.partial").write_text("years of work")
    for arguments in ([], ["--overwrite"]):
        outcome = program(*kitchen.stock(*arguments))
        check_error(outcome, 2, ["out"])
    assert (kitchen.root / "out.partial").read_text() == "years of work"


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"], ["--no-resume"]])
def test_input_at_the_place_of_the_partial(overwrite: list[str], program: Program, kitchen: Kitchen) -> None:
    """An input named OUT.partial is an input: it is not emptied to make room."""
    kitchen.a.rename(kitchen.root / "out.partial")
    before = snapshot(kitchen.root)
    outcome = program("merge", "--method", "linear", "out.partial", "b", "--out", "out", *overwrite)
    check_error(outcome, 2, ["out.partial"])
    assert snapshot(kitchen.root) == before


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_input_at_the_place_of_the_old_output(dry: list[str], program: Program, kitchen: Kitchen) -> None:
    """An input named OUT.old that stockpot once made stays where it is."""
    program.does(*kitchen.stock(out=kitchen.root / "out.old"))
    before = snapshot(kitchen.root / "out.old")
    outcome = program("merge", "--method", "linear", "out.old", "b", "--out", "out", *dry)
    assert (kitchen.root / "out.old").is_dir()
    assert snapshot(kitchen.root / "out.old") == before
    assert outcome.code in (0, 2)


def test_journal_that_is_a_symlink(program: Program, kitchen: Kitchen) -> None:
    """A symlink in OUT.partial is not written through."""
    victim = kitchen.root / "victim"
    victim.write_text("years of work")
    partial = kitchen.root / "out.partial"
    partial.mkdir()
    for name in (".stockpot-journal", ".stockpot-lock", "model.safetensors", "stockpot.json"):
        (partial / name).symlink_to(victim)
        outcome = program(*kitchen.stock("--overwrite"))
        assert victim.read_text() == "years of work", name
        assert outcome.code in (0, 2)
        shutil.rmtree(kitchen.out, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()


def test_partial_that_is_a_symlink(program: Program, kitchen: Kitchen) -> None:
    """OUT.partial as a symlink is refused; what it points to stays empty."""
    (kitchen.root / "elsewhere").mkdir()
    (kitchen.root / "out.partial").symlink_to("elsewhere")
    program.refuses(*kitchen.stock("--overwrite"), kind="output", says=["symbolic link", "out.partial"])


def test_empty_partial_is_empty_after_a_refusal(program: Program, kitchen: Kitchen) -> None:
    """What was there before stays as it was, an empty folder too."""
    (kitchen.root / "out.partial").mkdir()
    kitchen.change(kitchen.b, norm__weight=torch.full((4,), float("nan")))
    program.refuses(*kitchen.stock(), kind="non_finite", says=["norm.weight"])


def interrupt(program: Program, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch, arguments: list[object]) -> None:
    """Run a merge that breaks just before it is finished; its partial stays."""
    from stockpot.engine import _merge

    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(_merge, "_finish", broken)
        outcome = program(*arguments)
    assert outcome.code == 1, outcome.err
    assert (kitchen.root / "out.partial").is_dir()
    assert not kitchen.out.exists()


def test_partial_of_another_job(program: Program, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another job's partial is refused and kept; --overwrite discards it; the same job goes on from it."""
    interrupt(program, kitchen, monkeypatch, kitchen.stock())
    kept = {k: v for k, v in snapshot(kitchen.root).items() if not k.endswith("-lock")}
    for other in (["--granularity", "row"], ["--dtype", "float64"], ["--seed", "5"], ["--exclude", "norm"]):
        outcome = program(*kitchen.stock(*other))
        check_error(outcome, 2, ["another job", "out.partial", "--overwrite"])
        assert {k: v for k, v in snapshot(kitchen.root).items() if not k.endswith("-lock")} == kept
    program.does(*kitchen.stock("--dtype", "float64", "--overwrite", out=kitchen.out))
    assert not (kitchen.root / "out.partial").exists()
    assert load(kitchen.out)["norm.weight"].dtype == torch.float64


def test_same_job_goes_on(program: Program, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same job continues its partial whatever the workers and the memory, and gives the same bytes."""
    program.does(*kitchen.stock(out=kitchen.root / "straight"))
    interrupt(program, kitchen, monkeypatch, kitchen.stock())
    outcome = program.does(*kitchen.stock("--workers", "1", "--memory", "64MiB", "--json"))
    assert outcome.data["resumed_tensors"] == 3
    for name in ("model.safetensors", "stockpot.json", "stockpot_geometry.safetensors"):
        assert (kitchen.out / name).read_bytes() == (kitchen.root / "straight" / name).read_bytes()
    assert not (kitchen.root / "out.partial").exists()
    assert not list(kitchen.out.glob(".*"))


@pytest.mark.parametrize("name", ["model.safetensors", "stockpot_geometry.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_partial_whose_files_are_not_whole(
    damage: str, name: str, program: Program, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partial that lost a file, or part of it, is refused or done anew: never zeros for weights."""
    program.does(*kitchen.stock(out=kitchen.root / "straight"))
    interrupt(program, kitchen, monkeypatch, kitchen.stock())
    file = kitchen.root / "out.partial" / name
    file.unlink() if damage == "gone" else os.truncate(file, file.stat().st_size - 40)
    outcome = program(*kitchen.stock())
    if outcome.code:
        check_error(outcome, 2, ["out.partial"])
    else:
        assert (kitchen.out / name).read_bytes() == (kitchen.root / "straight" / name).read_bytes()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_one_file_whose_partial_outlived_it(
    suffix: str, program: Program, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off between the rename of one file and the removal of its partial: the next run removes what is left."""
    out = kitchen.root / f"out{suffix}"

    def cut_off(*_: object, **__: object) -> None:
        raise OSError(5, "power cut")

    with monkeypatch.context() as patch:
        patch.setattr("stockpot.checkpoint._staging.remove_partial", cut_off)
        assert program(*kitchen.stock(out=out)).code == 1
    straight = out.read_bytes()
    assert out.with_name(out.name + ".partial").is_dir()
    check_error(program(*kitchen.stock(out=out)), 2, ["the output exists"])
    assert not out.with_name(out.name + ".partial").exists()
    program.does(*kitchen.stock("--overwrite", out=out))
    assert out.read_bytes() == straight
    program.does("verify", out)


def test_no_resume_starts_over(program: Program, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    """--no-resume takes nothing from the partial."""
    interrupt(program, kitchen, monkeypatch, kitchen.stock())
    outcome = program.does(*kitchen.stock("--no-resume", "--json"))
    assert outcome.data["resumed_tensors"] == 0


def test_locked(program: Program, kitchen: Kitchen) -> None:
    """While another process holds the lock the merge is refused and told who holds it; with --overwrite too."""
    partial = kitchen.root / "out.partial"
    partial.mkdir()
    with (partial / ".stockpot-lock").open("w") as lock:
        lock.write("process 4321 on kitchen\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        for arguments in ([], ["--overwrite"], ["--no-resume"]):
            says = ["another", "out.partial", "process 4321 on kitchen"]
            program.refuses(*kitchen.stock(*arguments), kind="output_locked", says=says)
    program.does(*kitchen.stock())


# Room on the disk.


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_no_space_foreseen(dry: list[str], program: Program, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room is seen before the first byte, with the bytes needed and free."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=3, f_frsize=1000, f_favail=99))
    says = ["too little room", "/out", "bytes free", "got 3000"]
    program.refuses(*kitchen.stock(*dry), kind="no_space", says=says)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte, where mounting is permitted."""
    place = tmp_path / "disk"
    place.mkdir()
    with mounted(place, "size=1m"):
        yield place


def test_small_disk(small_disk: Path, program: Program, kitchen: Kitchen) -> None:
    """On a real disk that is too small nothing is written."""
    kitchen.everywhere(large=numbers(700, 700))
    program.refuses(*kitchen.stock(out=small_disk / "out"), kind="no_space", says=["too little room", "bytes free"])
    assert list(small_disk.iterdir()) == []


def test_disk_full_midway(
    small_disk: Path, program: Program, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up midway: exit 1, the reason and what to do; no OUT; the same command goes on later."""
    kitchen.everywhere(large=numbers(400, 400))
    real = os.statvfs
    roomy = SimpleNamespace(f_bavail=10**9, f_frsize=1000, f_favail=10**6)
    monkeypatch.setattr(os, "statvfs", lambda _: roomy)
    (small_disk / "filler").write_bytes(bytes(600_000))
    out = small_disk / "out"
    program.fails(
        *kitchen.stock(out=out), kind="run", says=["No space left", "out.partial", "free some space", "same command"]
    )
    assert not out.exists()
    (small_disk / "filler").unlink()
    program.does(*kitchen.stock(out=out))
    assert len(load(out)) == 4
    monkeypatch.setattr(os, "statvfs", real)


def test_disk_that_fills_up_at_the_small_files(
    small_disk: Path, program: Program, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last small file does not fit: still no OUT, and the merge goes on from its partial."""
    for folder in (kitchen.base, kitchen.a, kitchen.b):
        (folder / "tokenizer.json").write_bytes(b" " * 1_100_000)
    roomy = SimpleNamespace(f_bavail=10**9, f_frsize=1000, f_favail=10**6)
    monkeypatch.setattr(os, "statvfs", lambda _: roomy)
    out = small_disk / "out"
    program.fails(*kitchen.stock(out=out), kind="run", says=["No space left", "tokenizer.json"])
    assert not out.exists()
    (kitchen.a / "tokenizer.json").write_bytes(b"{}")
    outcome = program.does(*kitchen.stock("--json", out=out))
    assert outcome.data["resumed_tensors"] == 3
