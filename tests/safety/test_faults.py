"""What fails under a merge: one line that says what and where, no OUT, and the same command finishes afterwards."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.engine._processes import Ended, ended, reaches

from ._jobs import LAYERS, Job, undisturbed, without_syncing, write_inputs
from ._layer import Layer, calls
from ._mounts import mounted
from .conftest import Campaign

EIO, NOSPC, QUOTA, READONLY, NOLOCK = errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOLCK
UNMAPPED = f"map:0:{errno.ENODEV}:/inputs/"
"""Inputs on a file system that cannot be mapped: they are read by range."""

FAULTS: dict[str, tuple[int, list[str], list[str]]] = {
    "a write fails": (
        1,
        [f"write:4:{EIO}:/model"],
        ["writing failed (Input/output error)", "/model-", "check the disk"],
    ),
    "the disk fills up": (1, [f"write:-4:{NOSPC}:/model"], ["No space left", "free some space", "same command"]),
    "the quota is reached": (1, [f"write:4:{QUOTA}:/model"], ["quota", "free some space", "same command"]),
    "no room for a file": (1, [f"allocate:2:{NOSPC}"], ["No space left", "/model-00002", "free some space"]),
    "weights cannot be synced": (1, [f"sync:1:{EIO}:/model"], ["Input/output error", "out.partial"]),
    "the journal cannot be written": (1, [f"write:2:{EIO}:journal"], ["Input/output error", "out.partial"]),
    "the journal cannot be synced": (1, [f"sync:2:{EIO}:journal"], ["Input/output error", "out.partial"]),
    "a small file cannot be made": (1, [f"create:1:{EIO}:README"], ["Input/output error", "README.md"]),
    "the last rename fails": (1, [f"rename:1:{EIO}"], ["Input/output error", "/out;"]),
    "the disk turns read-only": (
        1,
        [f"{call}:-5:{READONLY}" for call in ("write", "create")] + [f"rename:0:{READONLY}", f"unlink:-2:{READONLY}"],
        ["Read-only file system", "out.partial"],
    ),
    "the folder cannot be made": (2, [f"mkdir:1:{NOSPC}:out.partial"], ["cannot be written there", "No space left"]),
    "the lock cannot be made": (2, [f"create:1:{READONLY}:lock"], ["cannot be written there", "Read-only"]),
    "the journal cannot be made": (2, [f"create:1:{EIO}:journal"], ["cannot be written there", "Input/output"]),
    "no locks there": (2, [f"lock:1:{NOLOCK}"], ["gives no lock (No locks available)", "--out"]),
    "a header cannot be read": (1, [f"read:1:{EIO}:/inputs/one/model-"], ["Input/output error", "/inputs/one/model-"]),
    "weights cannot be read": (1, [UNMAPPED, f"read:18:{EIO}:/inputs/one/"], ["reading failed (Input", "/inputs/one/"]),
    "a side file cannot be read": (
        1,
        [f"read:-2:{EIO}:notes.txt"],
        ["reading failed (Input", "/inputs/one/extra/notes"],
    ),
}
"""Exit code, what fails, words of the one line."""
BORNE = [
    UNMAPPED,
    "read:0:short:/inputs/",
    "write:0:short",
    f"sync:1:{errno.EINTR}",
    f"allocate:0:{errno.EOPNOTSUPP}",
    f"sync:0:{errno.EINVAL}:/out.partial$",
]
"""What is borne: no mapping, half of each read and write, a signal in between, no allocation, no syncing of folders."""


class Shop:
    """Inputs, a place for OUT, and the program under the layer."""

    def __init__(self, root: Path, layer: Layer) -> None:
        self.root, self.layer = root, layer
        self.job = Job(write_inputs(root / "inputs"), "out")
        self.place = root / "place"
        self.expected = undisturbed(self.job, root / "straight")
        self.facts: dict[str, object] = {}

    def fresh(self) -> None:
        """Nothing lies at OUT's place."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()

    def start(
        self, *rules: str, log: Path | None = None, clock: int = 0, before: Callable[[], object] | None = None,
        more: tuple[str, ...] = (),
    ) -> subprocess.Popen[str]:  # fmt: skip
        """The program."""
        return subprocess.Popen(
            self.job.command(self.place, "--workers", "2", "--json", *more, often=True),
            env=self.layer.environment(self.root, *rules, log=log, clock_seconds=clock, slow_microseconds=1000),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=before,
        )  # fmt: skip

    def check_told(self, name: str, result: Ended, code: int, says: list[str]) -> None:
        """One plain line with these words, the exit code, no OUT; written down."""
        assert result.code == code, (name, result.stderr)
        lines = [line for line in result.stderr.splitlines() if line.startswith("stockpot: error: ")]
        assert len(lines) == 1, (name, result.stderr)
        assert "Traceback" not in result.stderr
        assert "unexpected" not in lines[0], lines[0]
        for words in says:
            assert words in lines[0], (name, words, lines[0])
        assert result.record["status"] == "error"
        assert not self.job.out(self.place).exists()
        left = sorted(entry.name for entry in self.place.iterdir()) if self.place.exists() else []
        assert left == [] if code == 2 else left in ([], ["out.partial"]), (name, left)
        said = lines[0].replace(str(self.root), "...")
        self.facts[name] = {"exit": code, "said": said, "left": left, "then": "finished"}

    def check_finishes(self, name: str) -> None:
        """The same job, undisturbed, makes the same bytes."""
        self.place.mkdir(exist_ok=True)
        with without_syncing():
            result = self.job.merge(self.place)
        self.job.check_finished(self.place, self.expected)
        fact = self.facts.get(name)
        if isinstance(fact, dict):
            fact["then"] = f"finished, {result.resumed} of {LAYERS} tensors were there"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """One for all tests."""
    return Shop(tmp_path_factory.mktemp("shop"), Layer.build(tmp_path_factory.mktemp("layer")))


@pytest.fixture(autouse=True)
def place(shop: Shop, campaign: Campaign) -> Iterator[None]:
    """A fresh place before, a record after."""
    shop.fresh()
    (shop.root / "log").unlink(missing_ok=True)
    yield
    campaign.record("faults", cases=len(shop.facts), faults=shop.facts)


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str, shop: Shop) -> None:
    """A call fails: it is told in one line, nothing is finished, and the same command goes on."""
    code, rules, says = FAULTS[name]
    shop.check_told(name, ended(shop.start(*rules)), code, says)
    shop.check_finishes(name)


def test_what_is_borne(shop: Shop) -> None:
    """Half reads and writes, interrupted calls, a file system that can only read and write: the same bytes."""
    result = ended(shop.start(*BORNE))
    assert result.code == 0, result.stderr
    shop.job.check_finished(shop.place, shop.expected)


def removed(shop: Shop) -> None:
    """OUT.partial is removed."""
    shutil.rmtree(shop.place / "out.partial")


def removed_with_its_parent(shop: Shop) -> None:
    """OUT's parent is removed."""
    shutil.rmtree(shop.place)


def a_file_removed(shop: Shop) -> None:
    """A file of weights is removed from OUT.partial."""
    (shop.place / "out.partial" / "model-00001-of-00002.safetensors").unlink()


def a_file_cut(shop: Shop) -> None:
    """A file of weights loses its end."""
    os.truncate(shop.place / "out.partial" / "model-00002-of-00002.safetensors", 1000)


def done_by_another(shop: Shop) -> None:
    """OUT.partial is removed, and another merge makes OUT."""
    removed(shop)
    shop.job.merge(shop.place)
    shutil.move(shop.place / "out", shop.place / "elsewhere")


MOMENTS = {"while it writes": "write:4:stop:/model", "at its end": "create:1:stop:README"}


TOUCHED = [
    (change, moment)
    for change in (removed, removed_with_its_parent, a_file_removed, done_by_another, a_file_cut)
    for moment in MOMENTS
    if change is not a_file_cut or moment == "at its end"  # cut earlier, it is filled with holes: verify tells those
]


@pytest.mark.parametrize(("change", "moment"), TOUCHED)
def test_the_partial_is_touched(change: Callable[[Shop], None], moment: str, shop: Shop, campaign: Campaign) -> None:
    """What is taken from under a merge is noticed: exit 1, never an OUT that lacks it."""
    if moment == "while it writes" and change is not removed and not campaign.is_soak:
        pytest.skip("in make soak")
    log = shop.root / "log"
    with shop.start(MOMENTS[moment], log=log) as process:
        assert reaches(process, lambda: any(call.name == "stopped" for call in calls(log)))
        change(shop)
        process.send_signal(18)
        result = ended(process)
    shutil.rmtree(shop.place / "elsewhere", ignore_errors=True)
    name = f"{(change.__doc__ or '').rstrip('.')} {moment}"
    shop.check_told(name, result, 1, [str(shop.place)])
    shop.check_finishes(name)


def test_a_clock_that_runs_backwards(shop: Shop) -> None:
    """Inputs from tomorrow, and a clock that goes back an hour at each look: the same bytes, no rate below zero."""
    file = shop.job.inputs[1] / "model-00001-of-00002.safetensors"
    before = file.stat()
    tomorrow = time.time_ns() + 86_400 * 10**9
    os.utime(file, ns=(tomorrow, tomorrow))
    try:
        killed = ended(shop.start("create:1:before:README", clock=-3600))
        assert killed.code == -9, killed.stderr
        result = ended(shop.start(clock=-3600))
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert result.code == 0, result.stderr
    assert result.record["resumed_tensors"] == LAYERS
    assert result.record["seconds"] > 0
    assert "-" not in result.stderr.partition("written in")[2].partition("peak")[0]
    run = json.loads((shop.place / "out" / "stockpot_run.json").read_text())
    assert run["seconds"] > 0
    shop.job.check_finished(shop.place, shop.expected)


def no_privileges() -> None:
    """Root, too, is asked for permissions by the program about to start."""
    if os.geteuid() == 0:
        for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


DENIED: dict[str, tuple[str, int, list[str]]] = {
    "weights that may not be read": (
        "inputs/one/model-00002-of-00002.safetensors",
        0o000,
        ["may not be read", "/one/"],
    ),
    "a side file that may not be read": ("inputs/one/tokenizer.json", 0o000, ["may not be read", "tokenizer.json"]),
    "a folder that may not be entered": ("inputs/two", 0o000, ["/inputs/two"]),
    "a place that may not be written": ("place", 0o555, ["cannot be written there", "Permission denied", "/place/out"]),
}


@pytest.mark.parametrize("name", DENIED)
def test_no_permission(name: str, shop: Shop) -> None:
    """What may not be read or written is told before anything is written; permitted, it works."""
    path, mode, says = DENIED[name]
    before = (shop.root / path).stat().st_mode
    (shop.root / path).chmod(mode)
    try:
        result = ended(shop.start(before=no_privileges))
    finally:
        (shop.root / path).chmod(before)
    shop.check_told(name, result, 2, says)
    shop.check_finishes(name)


def test_another_users_partial(shop: Shop) -> None:
    """An unfinished output that may not be written is refused and left as it is."""
    shop.fresh()
    assert ended(shop.start("sync:2:after:journal")).code == -9
    partial = shop.place / "out.partial"
    locked = [partial, *partial.iterdir()]
    for path in locked:
        path.chmod(path.stat().st_mode & 0o555)
    result = ended(shop.start(before=no_privileges))
    assert result.code == 2, result.stderr
    assert "cannot be written there (Permission denied)" in result.stderr
    for path in locked:
        path.chmod(path.stat().st_mode | 0o200)
    shop.check_finishes("another user's partial")


def limited(kind: int, most: int) -> Callable[[], None]:
    """A limit for the program about to start."""
    return lambda: resource.setrlimit(kind, (most, most))


@pytest.mark.parametrize("most", [10, 16, 64])
def test_few_descriptors(most: int, shop: Shop, campaign: Campaign) -> None:
    """However few files a process may open: it works, or says so in one line."""
    if most > 10 and not campaign.is_soak:
        pytest.skip("in make soak")
    result = ended(shop.start(before=limited(resource.RLIMIT_NOFILE, most)))
    if result.code:
        shop.check_told(f"{most} descriptors", result, result.code, ["Too many open files"])
        shop.check_finishes(f"{most} descriptors")
    else:
        shop.job.check_finished(shop.place, shop.expected)
    assert most < 12 or result.code == 0, result.stderr


@pytest.mark.parametrize("megabytes", [120, 134, 142, 190, 300])
def test_little_memory(megabytes: int, shop: Shop, campaign: Campaign) -> None:
    """However little memory the process may have: one line that says what to do, or it works."""
    if megabytes not in (120, 142) and not campaign.is_soak:
        pytest.skip("in make soak")
    result = ended(shop.start(before=limited(resource.RLIMIT_AS, megabytes << 20)))
    name = f"{megabytes} MiB of address space"
    if result.code:
        says = "no more threads" if "threads" in result.stderr else "out of memory"
        shop.check_told(name, result, 1, [says])
        shop.check_finishes(name)
    else:
        shop.job.check_finished(shop.place, shop.expected)
    assert megabytes < 280 or result.code == 0, result.stderr


def test_a_file_system_mounted_read_only(shop: Shop) -> None:
    """Exit 2 before anything is read; mounted to be written, the same command finishes."""
    with mounted(shop.place, "size=8m,ro"):
        result = ended(shop.start())
        shop.check_told("mounted read-only", result, 2, ["cannot be written there (Read-only file system)"])
        subprocess.run(["mount", "-o", "remount,rw", str(shop.place)], check=True)
        shop.check_finishes("mounted read-only")
