"""Files that would be read or written wrongly by a hair."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

import stockpot
from stockpot import errors
from stockpot.checkpoint import Staging, last_checkpoints, open_checkpoint
from stockpot.checkpoint._descriptors import Descriptors


def test_a_sync_during_a_write_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that were written while the files were being synced are synced before their journal line."""
    staging = Staging(tmp_path / "out", "key")
    staging.create("w", 4, b"")
    staging.flush()
    calls: list[str] = []
    real_sync, real_write = os.fdatasync, os.pwrite

    def write(fd: int, data: Any, offset: int) -> int:
        staging._sync_files()  # the other thread, just before the bytes
        calls.append("write")
        return real_write(fd, data, offset)

    def sync(fd: int) -> None:
        calls.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        real_sync(fd)

    monkeypatch.setattr(os, "pwrite", write)
    staging.write("w", 0, memoryview(b"abcd"))
    monkeypatch.setattr(os, "pwrite", real_write)
    monkeypatch.setattr(os, "fdatasync", sync)
    staging.finish({"tensor": "w"})
    staging.flush()
    assert calls[-2] == "w"
    assert "journal" in calls[-1]
    staging.discard()


def test_a_sealed_archive_is_synced_before_its_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checksums and provenance of a ``.pt`` are on disk before it has its name."""
    synced: list[str] = []
    real = os.fdatasync

    def sync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        real(fd)

    staging = Staging(tmp_path / "out.pt", "key")
    staging.create_pickle("model.pt", [("w", "F32", (2,))], {})
    staging.flush()
    monkeypatch.setattr(os, "fdatasync", sync)
    staging.seal_pickle("model.pt", b"{}")
    staging.commit(one_file="model.pt")
    assert "model.pt" in synced


def test_a_storage_that_begins_before_itself(tmp_path: Path) -> None:
    """A view of a storage at a negative place is refused, in an archive as in the older form."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            kind = torch.FloatStorage
            return ("storage", kind, "0", "cpu", 8, (None, -1_000_000, 8)) if isinstance(value, Storage) else None

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, (8,), (1,), False, {})

    with (tmp_path / "data.pkl").open("wb") as file:
        Pickler(file, 2).dump({"w": Tensor()})
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        archive.write(tmp_path / "data.pkl", "archive/data.pkl")
        archive.writestr("archive/data/0", bytes(32))
    with pytest.raises(errors.PickleFormatError, match="begins before itself"):
        open_checkpoint(tmp_path / "bad.pt")


def part(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors or {"w": torch.ones(2)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("modules", "kind", "says"),
    [
        ([{"path": "../other"}], errors.ShardIndexError, "a part outside its checkpoint"),
        ([{"path": "/etc"}], errors.ShardIndexError, "a part outside its checkpoint"),
        ([], errors.CheckpointError, "the list of the checkpoint's parts cannot be read"),
        ({"a": 1}, errors.CheckpointError, "the list of the checkpoint's parts cannot be read"),
        ("junk", errors.CheckpointError, "the list of the checkpoint's parts cannot be read"),
    ],
)
def test_manifests_that_lie(modules: Any, kind: type[Exception], says: str, tmp_path: Path) -> None:
    """A part elsewhere, no parts, no JSON: told as that."""
    part(tmp_path / "m")
    (tmp_path / "m" / "modules.json").write_text(modules if modules == "junk" else json.dumps(modules))
    with pytest.raises(kind, match=says):
        open_checkpoint(tmp_path / "m")


def test_parts_named_twice_dotted_and_nested(tmp_path: Path) -> None:
    """A part named twice is one, ``./1_Dense`` and ``query/0_Dense`` are read as what they are."""
    root = part(tmp_path / "m")
    part(root / "1_Dense", a=torch.ones(1))
    part(root / "query" / "0_Dense", b=torch.ones(1))
    paths = ["", "./1_Dense", "1_Dense", "query/0_Dense", "2_Normalize"]
    (root / "modules.json").write_text(json.dumps([{"path": path} for path in paths]))
    assert set(open_checkpoint(root).tensors) == {"w", "1_Dense/a", "query/0_Dense/b"}


def test_one_name_in_two_parts(tmp_path: Path) -> None:
    """A tensor of the root that is called as one of a part is refused, not lost."""
    root = part(tmp_path / "m", **{"1_Dense/a": torch.zeros(1)})
    part(root / "1_Dense", a=torch.ones(1))
    (root / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Dense"}]))
    with pytest.raises(errors.DuplicateNameError, match="two parts hold the same tensor"):
        open_checkpoint(root)


def test_a_symlinked_part(tmp_path: Path) -> None:
    """A part behind a link is refused when it is opened, whoever it belongs to."""
    root = part(tmp_path / "m")
    part(tmp_path / "elsewhere")
    (root / "1_Dense").symlink_to(tmp_path / "elsewhere")
    (root / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Dense"}]))
    with pytest.raises(errors.CheckpointError, match="a symlinked folder inside a checkpoint"):
        open_checkpoint(root)


def test_a_configuration_of_many_parts_in_parts(tmp_path: Path) -> None:
    """600 maps in one another cost nobody anything."""
    folders = [part(tmp_path / name) for name in ("a", "b")]
    for folder in folders:
        (folder / "config.json").write_text('{"a":' * 600 + "{}" + "}" * 600)
    stockpot.merge("linear", models=folders, out=tmp_path / "out", dtype="bfloat16")


def test_what_a_healthy_output_may_hold(tmp_path: Path) -> None:
    """``git init`` and compiled code in an output are no damage."""
    stockpot.merge("linear", models=[part(tmp_path / "a"), part(tmp_path / "b")], out=tmp_path / "out")
    for name in (".git/config", "__pycache__/code.pyc", "sub/.hidden"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("x")
    assert stockpot.verify(tmp_path / "out").problems == ()
    (tmp_path / "out" / "sub" / "extra.json").write_text("{}")
    assert stockpot.verify(tmp_path / "out").problems != ()


def test_a_template_without_a_configuration(tmp_path: Path) -> None:
    """Where the template has none and another model has, the option that takes that one is said."""
    folders = [part(tmp_path / name) for name in ("a", "b")]
    (folders[1] / "config.json").write_text('{"model_type": "x"}')
    result = stockpot.merge("linear", models=folders, out=tmp_path / "out")
    assert "the template has no config.json: --template 2 has one" in result.warnings
    chosen = stockpot.merge("linear", models=folders, out=tmp_path / "other", template="2")
    assert not any("config.json" in said for said in chosen.warnings)
    assert (tmp_path / "other" / "config.json").is_file()


def test_side_files_of_any_size(tmp_path: Path) -> None:
    """Side files are copied in pieces, and their sums are those of the bytes."""
    folders = [part(tmp_path / name) for name in ("a", "b")]
    (folders[0] / "assets").mkdir()
    with (folders[0] / "assets" / "words.txt").open("wb") as file:
        file.truncate(150 << 20)
    (folders[0] / "empty.txt").touch()
    plan = stockpot.plan(
        stockpot.Recipe.from_data({"merge_method": "linear", "models": [{"model": str(one)} for one in folders]}),
        out=tmp_path / "out",
    )
    code = (
        "import stockpot, sys;print(stockpot.merge('linear', models=sys.argv[1:3], out=sys.argv[3]).peak_memory_bytes)"
    )
    words = [sys.executable, "-c", code, *map(str, folders), str(tmp_path / "out")]
    peak = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert peak < plan.peak_memory_bytes + (20 << 20)
    assert stockpot.verify(tmp_path / "out").problems == ()
    (tmp_path / "out" / "assets" / "words.txt").write_bytes(b"x")
    assert stockpot.verify(tmp_path / "out").problems != ()


def test_the_last_by_step_or_epoch(tmp_path: Path) -> None:
    """Scores in a name do not order it: its step does, else its epoch."""
    for score, epoch in (("0.90", 0), ("0.50", 1), ("0.30", 2)):
        (tmp_path / "epochs" / f"val_loss={score}-epoch={epoch:02d}").mkdir(parents=True)
    found = last_checkpoints(tmp_path / "epochs", 2)
    assert [Path(one).name for one in found] == ["val_loss=0.50-epoch=01", "val_loss=0.30-epoch=02"]
    for epoch, step in ((0, 100), (1, 50), (1, 200)):
        (tmp_path / "steps" / f"epoch={epoch}-step={step}").mkdir(parents=True)
    found = last_checkpoints(tmp_path / "steps", 2)
    assert [Path(one).name for one in found] == ["epoch=0-step=100", "epoch=1-step=200"]


def saved(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"a": torch.ones(4, 3)}, checkpoint_id=str(folder))
    return folder


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: [setattr(info, "relative_path", "\ud800.distcp") for info in s.storage_data.values()],
        lambda s: [setattr(info, "offset", 2**20000) for info in s.storage_data.values()],
        lambda s: [setattr(info, "length", 2**70) for info in s.storage_data.values()],
        lambda s: setattr(s.state_dict_metadata["a"], "size", torch.Size([1] * 200)),
    ],
    ids=["name", "offset", "length", "axes"],
)
def test_metadata_of_absurd_values(edit: Any, tmp_path: Path) -> None:
    """Names that are no text, numbers of thousands of digits: our own errors alone."""
    path = saved(tmp_path / "in") / ".metadata"
    stated = pickle.loads(path.read_bytes())
    edit(stated)
    path.write_bytes(pickle.dumps(stated))
    with pytest.raises(errors.CheckpointError):
        open_checkpoint(tmp_path / "in")


def test_shards_gone_after_opening(tmp_path: Path) -> None:
    """A file of chunks that was removed meanwhile is told as a file that cannot be read."""
    source = open_checkpoint(saved(tmp_path / "in"))
    (tmp_path / "in" / "__0_0.distcp").unlink()
    with pytest.raises(errors.RunError, match=r"__0_0\.distcp"):
        source.read_into(source.tensors["a"], 0, memoryview(bytearray(48)))


def test_pools_made_in_many_threads() -> None:
    """Holders of descriptors come and go while others count them."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(300):
                pool = Descriptors[int](lambda _: "/dev/null", os.O_RDONLY)
                with pool.use(0):
                    pass
                pool.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
