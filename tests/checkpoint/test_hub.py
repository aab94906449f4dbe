"""Hub ids: headers by range, weights only when the plan stands, the cache and its switches; each request is counted."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

import stockpot
from stockpot import engine, errors
from stockpot.checkpoint import Checkpoint
from stockpot.checkpoint import open_checkpoint as open_any

from ._hub_models import LEFT_OUT, SIDE_FILES, pickled, pipeline, plain, saved, sharded, tensors
from ._hub_stub import LARGE, TOKEN, Fault, Hub

HEADER_BYTES = 64 << 10
"""More than this of a file is not its header."""


def open_checkpoint(ref: str | Path) -> Checkpoint:
    """One in files."""
    found = open_any(ref)
    assert isinstance(found, Checkpoint)
    return found


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_HUB_OFFLINE=1 does it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def cached(tmp_path: Path, name: str) -> set[str]:
    """Files of a model in the cache."""
    (snapshot,) = (tmp_path / "cache" / f"models--{name.replace('/', '--')}" / "snapshots").iterdir()
    return {str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()}


def content(checkpoint: Checkpoint) -> dict[str, bytes]:
    """All bytes, by name."""
    found = {}
    for name, info in checkpoint.tensors.items():
        data = bytearray(info.nbytes)
        checkpoint.read_into(info, 0, memoryview(data))
        found[name] = bytes(data)
    return found


FORMS = {"one file": plain, "shards": sharded, "a pickle": pickled}


@pytest.mark.parametrize("form", FORMS)
def test_opening_costs_headers(form: str, hub: Hub, tmp_path: Path) -> None:
    """A Hub id is opened without its weights; its tensors are those of the same files in a folder."""
    files = FORMS[form](0)
    commit = hub.add("org/model", files)
    for name, data in files.items():
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_bytes(data)
    if form == "one file":
        (tmp_path / "local" / "pytorch_model.bin").unlink()
    local, found = open_checkpoint(tmp_path / "local"), open_checkpoint("org/model")
    assert (found.tensors, found.aliases, found.parts) == (local.tensors, local.aliases, local.parts)
    assert [f.header_digest for f in found.files] == [f.header_digest for f in local.files]
    assert (found.ref, found.commit, found.roots) == ("org/model", commit, ())
    for name in files:
        assert hub.sent(f"/{name}") < HEADER_BYTES, name
    assert hub.whole() == []
    assert {one.token for one in hub.log if one.host == "hub"} == {f"Bearer {TOKEN}"}
    assert {one.token for one in hub.log if one.host == "elsewhere"} == {None}, "the token went to another host"
    assert content(found) == content(local), "read by range"
    assert content(found.fetched()) == content(local), "read from the cache"


def test_a_long_header_is_read_whole(hub: Hub) -> None:
    """A header of several blocks takes two requests."""
    many = {f"layer.{number}." + "x" * 200: torch.zeros(1) for number in range(400)}
    hub.add("org/model", {"model.safetensors": safetensors.torch.save(many)})
    assert len(open_checkpoint("org/model").tensors) == 400
    assert len([one for one in hub.log if one.host == "elsewhere"]) == 2


def test_headers_of_a_pickle_take_few_bytes(hub: Hub) -> None:
    """Where the storages of an archive begin is asked in 30 bytes for each, and its name."""
    hub.add("org/model", {"pytorch_model.bin": saved({f"w{n}": torch.zeros(20_000) for n in range(20)})})
    open_checkpoint("org/model")
    assert hub.sent() < HEADER_BYTES + 30 * 50


def test_a_merge_downloads_what_it_needs_once(hub: Hub, tmp_path: Path) -> None:
    """Weights and the template's side files, whole, and nothing else; the second merge asks for metadata only."""
    hub.add("org/m0", plain(0))
    hub.add("org/m1", sharded(1) | LEFT_OUT)
    hub.add("org/m2", pickled(2))
    models = ["org/m1", "org/m2"]
    stockpot.merge("model_stock", base="org/m0", models=models, out=tmp_path / "out")
    assert cached(tmp_path, "org/m0") == {"model.safetensors", "config.json"}
    assert cached(tmp_path, "org/m1") == set(sharded(1))
    assert cached(tmp_path, "org/m2") == {"pytorch_model.bin", "config.json"}
    assert all((tmp_path / "out" / name).is_file() for name in SIDE_FILES)
    assert not any((tmp_path / "out" / name).exists() for name in LEFT_OUT if name != "README.md")
    hub.log.clear()
    stockpot.merge("model_stock", base="org/m0", models=models, out=tmp_path / "again")
    assert len(hub.log) == 3
    assert all(one.path.startswith("/api/models/") for one in hub.log)
    names = ["stockpot.json", "model.safetensors.index.json", "model-00001-of-00003.safetensors"]
    assert all((tmp_path / "out" / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)


def test_the_result_is_that_of_local_files(hub: Hub, tmp_path: Path) -> None:
    """The same bytes as from files, and the commits in the provenance."""
    refs, paths, commits = [], [], []
    for number in range(2):
        commits.append(hub.add(f"org/m{number}", plain(number), "v1"))
        refs.append(f"org/m{number}@v1")
        paths.append(tmp_path / f"m{number}.safetensors")
        paths[-1].write_bytes(plain(number)["model.safetensors"])
    stockpot.merge("linear", models=refs, out=tmp_path / "hub")
    stockpot.merge("linear", models=paths, out=tmp_path / "files")
    one, other = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("hub", "files"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    record = json.loads((tmp_path / "hub" / "stockpot.json").read_text())
    assert [(said["ref"], said["commit"]) for said in record["inputs"]] == list(zip(refs, commits, strict=True))
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "base_model:\n- org/m0\n- org/m1\nbase_model_relation: merge" in card


def test_one_file_out_has_room_for_the_commits(hub: Hub, tmp_path: Path) -> None:
    """The header's reserve is the same before and after the download."""
    for number in range(2):
        hub.add(f"org/m{number}", plain(number))
    stockpot.merge("linear", models=["org/m0", "org/m1"], out=tmp_path / "out.safetensors")
    assert stockpot.verify(tmp_path / "out.safetensors", recompute=1.0).problems == ()


DIFFERENT = {
    "a shape": (lambda: plain(1, size=100), errors.MismatchError),
    "missing tensors": (lambda: plain(1, layers=2), errors.MissingTensorError),
    "an index that lies": (
        lambda: sharded(1) | {"model.safetensors.index.json": b'{"weight_map": {"w": "gone.safetensors"}}'},
        errors.ShardIndexError,
    ),
    "a header that lies": (lambda: {"model.safetensors": b"\xff" * 5000}, errors.HeaderError),
    "an unsafe pickle": (lambda: {"pytorch_model.bin": saved(Path("x").stat)}, errors.CheckpointError),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_does_not_fit_is_told_before_weights_are_downloaded(case: str, hub: Hub, tmp_path: Path) -> None:
    """No weights were asked for when the refusal came."""
    files, kind = DIFFERENT[case]
    hub.add("org/m0", plain(0))
    hub.add("org/m1", files())
    with pytest.raises(kind) as caught:
        stockpot.merge("linear", models=["org/m0", "org/m1"], out=tmp_path / "out")
    assert "org/m1" in caught.value.line()
    assert hub.whole() == []
    assert all(hub.sent(end) < 2 * HEADER_BYTES for end in LARGE)
    assert not (tmp_path / "out").exists()


def test_a_plan_says_what_would_be_downloaded(hub: Hub, tmp_path: Path) -> None:
    """Bytes of weights, and of the template's side files that are not there yet; less what the cache has."""
    hub.add("org/m0", plain(0))
    hub.add("org/m1", plain(1))
    recipe = stockpot.Recipe.from_data(
        {"merge_method": "linear", "models": [{"model": f"org/m{n}", "parameters": {"weight": 1}} for n in range(2)]},
        "r",
    )
    one = len(plain(0)["model.safetensors"])
    beside = sum(len(data) for name, data in SIDE_FILES.items() if name != "config.json")
    assert stockpot.plan(recipe, out=tmp_path / "out").record()["bytes_to_download"] == 2 * one + beside
    open_checkpoint("org/m1").fetched(side_files=False)
    assert stockpot.plan(recipe, out=tmp_path / "out").bytes_to_download == one + beside


def test_equal_integers_are_compared_by_range(hub: Hub, tmp_path: Path) -> None:
    """The one place where planning reads data reads just that."""
    for number in range(2):
        own = tensors(number) | {"ids": torch.arange(10) + number}
        hub.add(f"org/m{number}", {"model.safetensors": safetensors.torch.save(own)})
    recipe = stockpot.Recipe.from_data(
        {
            "merge_method": "linear",
            "models": [{"model": f"org/m{n}", "parameters": {"weight": 1}} for n in range(2)],
            "policies": {"mismatch": "first"},
        },
        "r",
    )
    decided = stockpot.plan(recipe, out=tmp_path / "out").alignment.decisions
    assert [(one.tensor, one.policy) for one in decided] == [("ids", "mismatch")]
    ranges = [one.range for one in hub.log if one.host == "elsewhere" and one.range is not None]
    assert sum(range_ != "bytes=0-32767" for range_ in ranges) == 2


def test_content_that_another_commit_brought_is_not_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    """Only the config changed: the weights are in the cache already."""
    hub.add("org/m", plain(0))
    open_checkpoint("org/m").fetched()
    hub.add("org/m", plain(0) | {"config.json": b'{"new": 1}'})
    hub.log.clear()
    found = open_checkpoint("org/m")
    assert not any(found.downloads(side_files=True).values())
    assert content(found) == content(found.fetched())
    assert hub.sent(".safetensors") == 0


@pytest.mark.parametrize("form", [plain, sharded, pipeline])
def test_offline_no_request_is_made(form: object, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE: a whole cache is enough, by name and by commit."""
    assert callable(form)
    commit = hub.add("org/m", form(0))
    before = content(open_checkpoint("org/m").fetched())
    hub.log.clear()
    offline(monkeypatch)
    for ref in ("org/m", f"org/m@{commit}"):
        found = open_checkpoint(ref)
        assert (content(found.fetched()), found.commit, found.notes) == (before, commit, ())
    assert hub.log == []


def test_offline_what_is_missing_is_named(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache without one shard, or one part, is not taken for whole; the error names it and the switch."""
    hub.add("org/m", sharded(0))
    hub.add("org/p", pipeline(0))
    for name, gone in (("org/m", "model-00002-of-00003.safetensors"), ("org/p", "unet")):
        found = open_checkpoint(name).fetched()
        path = found.root / gone
        path.unlink() if path.is_file() else shutil.rmtree(path)
    hub.log.clear()
    offline(monkeypatch)
    with pytest.raises(
        errors.HubError, match=r"not in the hub's cache.*org/m/model-00002-of-00003\.safetensors.*HF_HUB_OFFLINE"
    ):
        open_checkpoint("org/m")
    with pytest.raises(errors.HubError, match=r"org/p/unet/diffusion_pytorch_model\.safetensors.*HF_HUB_OFFLINE"):
        open_checkpoint("org/p")
    with pytest.raises(errors.NotFoundError, match=r"no such path.*no such Hub id.*org/other.*HF_HUB_OFFLINE"):
        open_checkpoint("org/other")
    assert hub.log == []


def test_after_a_dry_run_nothing_is_taken_for_whole(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files alone are in the cache: the weights are missing, by name."""
    hub.add("org/p", pipeline(0))
    open_checkpoint("org/p")
    offline(monkeypatch)
    with pytest.raises(errors.HubError, match=r"unet/diffusion_pytorch_model\.safetensors"):
        open_checkpoint("org/p")


def test_a_hub_out_of_reach_is_done_without(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole copy in the cache is used, and the plan says so; an incomplete one is not."""
    commit = hub.add("org/m", sharded(0))
    found = open_checkpoint("org/m").fetched()
    hub.faults.append(Fault("GET /api/", status=503))
    again = open_checkpoint("org/m")
    assert content(again.fetched()) == content(found)
    assert again.notes == (f"org/m: the hub failed to answer; the cached copy of commit {commit[:12]} is used",)
    (found.root / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(errors.HubError, match=r"failed to answer.*model-00001-of-00003.safetensors.*503"):
        open_checkpoint("org/m")


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens: the error says where it asked."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://user:{TOKEN}@127.0.0.1:{port}")
        with pytest.raises(errors.HubError, match=rf"no such path.*cannot be reached.*127\.0\.0\.1:{port}") as caught:
            open_checkpoint("org/m")
    assert TOKEN not in repr(caught.value.record())


def test_a_fault_that_passes_is_tried_again(hub: Hub) -> None:
    """503 twice, for the listing and for a header: three tries each."""
    hub.add("org/m", plain(0))
    hub.faults += [Fault("GET /api/", status=503, times=2), Fault("/resolve/.*safetensors", status=502, times=2)]
    assert open_checkpoint("org/m").tensors
    assert [one.status for one in hub.log if one.path.startswith("/api/")] == [503, 503, 200]


@pytest.mark.parametrize(
    "fault", [Fault("/store/", short=True), Fault("/store/", keep=1000), Fault("/store/", status=500)]
)
def test_a_fault_that_does_not_pass_is_told(fault: Fault, hub: Hub) -> None:
    """Three tries, then the file is named: half an answer is none."""
    hub.add("org/m", plain(0))
    hub.faults.append(Fault(fault.pattern, fault.status, keep=fault.keep, short=fault.short))
    with pytest.raises(errors.HubError, match=r"org/m/model.safetensors"):
        open_checkpoint("org/m")
    assert len([one for one in hub.log if one.host == "elsewhere"]) == 3


@pytest.mark.parametrize("form", [plain, sharded])
@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_lists_its_files_but_gives_none(form: object, status: int, hub: Hub) -> None:
    """The refusal comes with the first file, be it a header's range or an index."""
    assert callable(form)
    hub.add("org/m", form(0))
    hub.faults.append(Fault("/org/m/resolve/", status=status, headers={"X-Error-Code": "GatedRepo"}))
    with pytest.raises(errors.UnreadableError, match=r"gated; file org/m/model.*licence on the model's page"):
        open_checkpoint("org/m")


def test_a_hub_that_knows_no_ranges(hub: Hub) -> None:
    """The whole file instead of a part: its beginning is taken; of its end it is said that it cannot be had."""
    big = {"w": torch.zeros(4_000_000)}
    hub.add("org/m", {"model.safetensors": safetensors.torch.save(big)})
    hub.add("org/p", {"pytorch_model.bin": saved(big)})
    hub.faults.append(Fault("/store/", whole=True))
    assert set(open_checkpoint("org/m").tensors) == {"w"}
    with pytest.raises(errors.HubError, match=r"does not serve parts of files.*expected bytes \d+-\d+, got 200"):
        open_checkpoint("org/p")


def test_a_download_that_breaks_off_is_gone_on_with(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library asks again (of long files for the rest); the result is whole."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.add("org/m", plain(0))
    found = open_checkpoint("org/m")
    hub.log.clear()
    hub.faults.append(Fault("GET /store/", keep=100_000, times=1))
    here = found.fetched()
    data = plain(0)["model.safetensors"]
    assert Path(here.files[0].path).read_bytes() == data
    assert len([one for one in hub.log if one.host == "elsewhere"]) == 2


def test_a_download_that_never_ends_leaves_nothing(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off again and again: told, and no half file in the cache."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.add("org/m", plain(0))
    found = open_checkpoint("org/m")
    hub.faults.append(Fault("GET /store/", keep=0))
    with pytest.raises(errors.HubError, match=r"org/m/model.safetensors"):
        found.fetched()
    assert cached(tmp_path, "org/m") == {"config.json"}


def test_other_weights_than_the_headers_said(hub: Hub) -> None:
    """Files that are not those of the plan are not merged."""
    commit = hub.add("org/m", plain(0))
    found = open_checkpoint("org/m")
    other = safetensors.torch.save({name[::-1]: tensor for name, tensor in tensors(0).items()})
    hub.models["org/m"].commits[commit]["model.safetensors"] = other
    with pytest.raises(errors.InputChangedError, match="org/m"):
        found.fetched()


def test_too_little_room_is_told_before_the_download(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache's disk is looked at first."""
    hub.add("org/m0", plain(0))
    hub.add("org/m1", plain(1))
    monkeypatch.setattr("stockpot.engine._fetch.disk_free", lambda _: 1000)
    with pytest.raises(errors.NoSpaceError, match=r"too little room for the download.*cache.*got 1000"):
        stockpot.merge("linear", models=["org/m0", "org/m1"], out=tmp_path / "out")
    assert hub.whole() == []


def test_parts_are_fetched_with_their_side_files(hub: Hub, tmp_path: Path) -> None:
    """A pipeline from the hub: parts, their configs, and no second form of the weights."""
    for number in range(2):
        hub.add(f"org/p{number}", pipeline(number))
    stockpot.merge("linear", models=["org/p0", "org/p1"], out=tmp_path / "out")
    assert cached(tmp_path, "org/p0") == set(pipeline(0)) - {"unet/diffusion_pytorch_model.bin"}
    assert (tmp_path / "out" / "scheduler" / "scheduler_config.json").is_file()
    assert {part.folder for part in open_checkpoint(tmp_path / "out").parts} == {"unet", "vae"}


def test_verify_takes_the_commit_that_was_merged(hub: Hub, tmp_path: Path) -> None:
    """``main`` has moved on: the recorded commit is compared, and a note says so."""
    for number in range(2):
        hub.add(f"org/m{number}", plain(number))
    stockpot.merge("linear", models=["org/m0", "org/m1"], out=tmp_path / "out")
    assert stockpot.verify(tmp_path / "out", recompute=1.0).notes == ()
    new = hub.add("org/m1", plain(7))
    found = stockpot.verify(tmp_path / "out", recompute=1.0)
    assert (found.problems, found.recomputed) == ((), 3)
    assert len(found.notes) == 1
    assert f"org/m1: means commit {new[:12]} by now" in found.notes[0]


def test_geometry_and_soups_read_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    """Whoever reads weights has them downloaded first, after the headers were found to fit."""
    for number in range(3):
        hub.add(f"org/m{number}", plain(number))
    found = stockpot.geometry(base="org/m0", models=["org/m1", "org/m2"])
    assert found.norms.shape == (3, 2)
    assert cached(tmp_path, "org/m1") == {"model.safetensors", "config.json"}
    hub.log.clear()
    from stockpot import soups

    soups.uniform(["org/m1", "org/m2"], out=tmp_path / "soup")
    assert hub.whole() == []
    assert hub.sent(".safetensors") == 0
    assert set(SIDE_FILES) <= cached(tmp_path, "org/m1")


def test_soups_refuse_before_the_download(hub: Hub, tmp_path: Path) -> None:
    """Models of different shapes cost their headers."""
    from stockpot import soups

    hub.add("org/m0", plain(0))
    hub.add("org/m1", plain(1, size=100))
    with pytest.raises(errors.MismatchError):
        soups.uniform(["org/m0", "org/m1"], out=tmp_path / "soup")
    assert hub.whole() == []


@pytest.mark.parametrize("name", ["../../out.safetensors", "/etc/model.safetensors", "a\\..\\b.json"])
def test_names_that_lead_outside_are_refused(name: str, hub: Hub) -> None:
    """A listing is not trusted with paths."""
    hub.add("org/m", {name: b"{}"})
    with pytest.raises(errors.HubError, match="outside the model"):
        open_checkpoint("org/m")


def test_a_commit_can_be_opened_whatever_its_name_means_now(hub: Hub) -> None:
    """By the commit itself, and by a name of it."""
    old = hub.add("org/m", plain(0))
    hub.add("org/m", plain(1), "refs/pr/1")
    hub.add("org/m", plain(2))
    assert open_any("org/m", commit=old).commit == open_checkpoint(f"org/m@{old}").commit == old
    assert open_checkpoint("org/m@refs/pr/1").commit == hub.models["org/m"].revisions["refs/pr/1"]


def test_a_source_in_memory_is_where_it_is() -> None:
    """Nothing is downloaded of it."""
    source = engine.MemorySource({"w": torch.zeros(2)}, "m")
    assert source.fetched() is source
    assert not any(source.downloads(side_files=True).values())


@pytest.mark.parametrize(
    ("path", "size", "says"),
    [
        ("../model.safetensors", 8, "the hub names a file outside the model"),
        ("/etc/passwd", 8, "the hub names a file outside the model"),
        ("model.safetensors", "8", "the hub's list of files makes no sense"),
        ("model.safetensors", -1, "the hub's list of files makes no sense"),
        (None, 8, "the hub's list of files makes no sense"),
    ],
)
def test_a_listing_that_lies(path: object, size: object, says: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that lead elsewhere and sizes that are none are refused before anything is asked for."""
    hub.add("org/m", plain(0))
    commit = hub.models["org/m"].revisions["main"]
    one = SimpleNamespace(rfilename=path, size=size, lfs=None, blob_id="0" * 40)
    answer = SimpleNamespace(sha=commit, siblings=[one])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: answer)
    with pytest.raises(errors.HubError, match=says):
        open_checkpoint("org/m")
