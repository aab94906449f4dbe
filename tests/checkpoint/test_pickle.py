"""Pickled state dicts: what torch reads from them we read too; what asks for code is refused and not run."""

from __future__ import annotations

import argparse
import collections
import pathlib
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import settings

import stockpot
from stockpot import errors
from stockpot.checkpoint import (
    TORCH_NAMES,
    _pickle_writer,
    damaged_member,
    is_sealed_archive,
    open_checkpoint,
    read_provenance,
)
from stockpot.checkpoint._pickle_writer import PROVENANCE_MEMBER, seal, write_skeleton

from ._corpus import CONTAINERS, GOOD

QUIET = settings(derandomize=True, deadline=None, max_examples=200)
FORMS = {"zip": True, "legacy": False}
SAVEABLE = [name for name in TORCH_NAMES.values() if hasattr(torch, name) and name != "float4_e2m1fn_x2"]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Seeded normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def of_dtype(name: str) -> torch.Tensor:
    """Six elements of any dtype, from bytes that are finite in all of them."""
    dtype = getattr(torch, name)
    if dtype is torch.bool:
        return torch.tensor([[True, False, True], [False, False, True]])
    size = torch.empty(0, dtype=dtype).element_size()
    return (torch.arange(6 * size, dtype=torch.uint8) % 50).view(dtype).reshape(2, 3)


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor, row-major."""
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())


def assert_read_as(path: Path, expected: Mapping[str, torch.Tensor]) -> None:
    """A merge of this one file alone is these tensors, bit by bit (in the format's own library)."""
    out = path.with_name(path.stem + "-out.safetensors")
    stockpot.merge("linear", models=[path], out=out)
    found = safetensors.torch.load_file(out)
    aliases = open_checkpoint(out).aliases
    found.update({alias: found[kept] for alias, kept in aliases.items()})
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert raw(found[name]) == raw(tensor), name


@pytest.fixture(params=FORMS)
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Save an object with torch, in one of its two forms."""

    def write(what: object, name: str = "model.pt") -> Path:
        path = tmp_path / name
        torch.save(what, path, _use_new_zipfile_serialization=FORMS[request.param])
        return path

    return write


@pytest.mark.parametrize("name", SAVEABLE)
def test_every_dtype(name: str, save: Callable[..., Path]) -> None:
    """A tensor of any dtype has the bytes that torch reads, 0-d and empty ones too."""
    tensor = of_dtype(name)
    tensors = {"w": tensor, "scalar": tensor[0, 0].clone(), "empty": torch.empty(0, 3, dtype=tensor.dtype)}
    # torch writes its newest dtypes in the older form too, but cannot read them back: so not against torch.load.
    assert_read_as(save(tensors), tensors)


def views() -> dict[str, torch.Tensor]:
    """One tensor of each way to lie in memory."""
    matrix = numbers(6, 10)
    image = numbers(2, 3, 4, 5)
    return {
        "plain": matrix.clone(),
        "transposed": matrix.clone().t(),
        "permuted": image.clone().permute(2, 0, 3, 1),
        "channels last": image.clone().to(memory_format=torch.channels_last),
        "rows": matrix.clone()[2:4],
        "columns": matrix.clone()[:, 2:5],
        "one column": matrix.clone()[:, 3],
        "every second": matrix.clone()[::2, ::2],
        "every eighth": numbers(64)[::8],
        "diagonal": numbers(9, 9).diagonal(),
        "expanded": numbers(1, 4).expand(3, 4),
        "a scalar of many": numbers(5)[2],
        "one row, odd strides": matrix.clone().t()[:, :1],
    }


@pytest.mark.parametrize("name", views())
def test_views(name: str, save: Callable[..., Path]) -> None:
    """A view saved with its storage is read as the tensor that it shows."""
    tensor = views()[name]
    path = save({"w": tensor, "x": numbers(2)})
    assert_read_as(path, {"w": tensor, "x": numbers(2)})


@pytest.mark.parametrize("name", ["every second", "transposed", "one column"])
def test_views_of_integers(name: str, save: Callable[..., Path]) -> None:
    """A view that is copied, not merged, is gathered the same way."""
    tensor = (views()[name] * 100).to(torch.int32)
    wide = torch.zeros(60, dtype=torch.int32).as_strided(tensor.shape, tensor.stride())
    wide.copy_(tensor)
    assert_read_as(save({"w": wide}), {"w": tensor})


@pytest.mark.parametrize("name", views())
def test_merge_of_views_equals_merge_of_dense_tensors(name: str, save: Callable[..., Path], tmp_path: Path) -> None:
    """How a tensor lies in the file changes no bit of the merge."""
    shown = views()[name]
    made: dict[str, list[Path]] = {"strided": [], "dense": []}
    for number in range(3):
        tensor = shown + numbers(*shown.shape, seed=number) * 0.1
        strided = torch.empty_like(shown.contiguous()).new_zeros(400)
        if name != "expanded":
            strided = strided.as_strided(shown.shape, shown.stride(), shown.storage_offset())
            strided.copy_(tensor)
        else:
            tensor = tensor[:1].expand(3, 4)
            strided = tensor
        made["strided"].append(save({"w": strided}, f"s{number}.pt"))
        dense = tmp_path / f"d{number}.safetensors"
        safetensors.torch.save_file({"w": tensor.contiguous()}, dense)
        made["dense"].append(dense)
    results = []
    for kind, (base, *models) in made.items():
        out = tmp_path / f"{kind}.safetensors"
        stockpot.merge("model_stock", base=base, models=models, out=out)
        results.append(raw(safetensors.torch.load_file(out)["w"]))
    assert results[0] == results[1]


def test_large_view_is_read_piecewise(save: Callable[..., Path]) -> None:
    """A transposed tensor larger than a piece is the same as one that fits."""
    tensor = numbers(1500, 700).t()
    assert_read_as(save({"w": tensor}), {"w": tensor})


def test_two_views_of_one_storage(save: Callable[..., Path]) -> None:
    """Different views of one storage are different tensors."""
    storage = numbers(6, 6)
    path = save({"w": storage, "t": storage.t(), "half": storage[:3], "rest": storage[3:]})
    assert open_checkpoint(path).aliases == {}
    assert_read_as(path, torch.load(path, weights_only=True))


def test_tied_names_are_one_tensor(save: Callable[..., Path]) -> None:
    """Names of the same storage and form are aliases of the first."""
    shared = numbers(3, 2)
    path = save({"embed": shared, "other": numbers(2), "head": shared})
    checkpoint = open_checkpoint(path)
    assert dict(checkpoint.aliases) == {"head": "embed"}
    assert set(checkpoint.tensors) == {"embed", "other"}
    assert_read_as(path, torch.load(path, weights_only=True))


def test_ties_follow_a_rename(save: Callable[..., Path], tmp_path: Path) -> None:
    """A rename meets the further names of a tied tensor too."""
    shared = numbers(3, 2)
    tied = save({"m.embed": shared, "m.head": shared})
    plain = tmp_path / "b.safetensors"
    safetensors.torch.save_file({"embed": shared + 1, "head": shared + 2}, plain)
    out = tmp_path / "out.safetensors"
    stockpot.merge("linear", models=[tied, plain], rename=["1:^m[.]="], out=out)
    assert set(safetensors.torch.load_file(out)) == {"embed", "head"}


class Net(torch.nn.Module):
    """A model with a shared weight, a buffer, and an integer counter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(3, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.last = torch.nn.Linear(3, 3)
        self.last.weight = self.first.weight


def test_state_dict_of_a_module(save: Callable[..., Path]) -> None:
    """A module's state dict, an OrderedDict with _metadata, is read as torch reads it."""
    with torch.random.fork_rng():
        path = save(Net().state_dict())
    loaded = torch.load(path, weights_only=True)
    assert isinstance(loaded, collections.OrderedDict)
    assert_read_as(path, loaded)


def test_parameters(save: Callable[..., Path]) -> None:
    """Parameters (saved with keep_vars, or from a list of parameters) are their tensors."""
    with torch.random.fork_rng():
        state = Net().state_dict(keep_vars=True)
    state["marked"] = torch.nn.Parameter(numbers(2))
    state["marked"].note = "kept beside"  # type: ignore[attr-defined]  # tensors take any attribute
    path = save(state)
    assert_read_as(path, {name: value.detach() for name, value in state.items()})


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "state_dict_ema", "model_state_dict"])
def test_wrappers_are_taken_off(wrapper: str, save: Callable[..., Path]) -> None:
    """The state dict under a common key is found, beside what training scripts leave there."""
    state = {"w": numbers(2), "b": numbers(3)}
    path = save(
        {
            "epoch": 7,
            "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.99)),
            "best": np.float64(0.5),
            "array": np.arange(3.0),
            "path": pathlib.PurePosixPath("a/b"),
            "counts": collections.Counter("aab"),
            "seen": {1, 2},
            "size": torch.Size([2, 3]),
            "device": torch.device("cpu"),
            "dtype": torch.float16,
            "optimizer": {
                "state": {0: {"step": torch.tensor(3), "exp_avg": numbers(2)}},
                "param_groups": [{"lr": 0.1}],
            },
            "lists": collections.defaultdict(list, {"a": [1]}),
            wrapper: state,
        }
    )
    checkpoint = open_checkpoint(path)
    assert any(wrapper in note for note in checkpoint.notes)
    assert_read_as(path, state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_are_taken_off(prefix: str, save: Callable[..., Path]) -> None:
    """A prefix that wrappers of a module put before every name is taken off, and said."""
    path = save({"model": {prefix + "w": numbers(2), prefix + "b": numbers(3)}})
    assert_read_as(path, {"w": numbers(2), "b": numbers(3)})
    notes = " ".join(open_checkpoint(path).notes)
    assert all(part in notes for part in ("model", "module.", "_orig_mod.") if part in ("model " + prefix))


def test_a_prefix_that_not_all_names_have_stays(save: Callable[..., Path]) -> None:
    """Only a prefix of every name is a wrapper's."""
    state = {"module.w": numbers(2), "b": numbers(3)}
    assert_read_as(save(state), state)


def test_a_tensor_beside_the_wrapper_is_not_the_state_dict(save: Callable[..., Path]) -> None:
    """A stray tensor beside the state dict (a loss, a score) does not hide it."""
    state = {"w": numbers(2)}
    assert_read_as(save({"best_score": torch.tensor(0.5), "state_dict": state}), state)


def test_nested_tensors_are_not_dropped_in_silence(save: Callable[..., Path]) -> None:
    """Tensors in a nested map beside flat ones are refused, kept, or said to be left out."""
    path = save({"w": numbers(2), "encoder": {"x": numbers(3)}})
    try:
        checkpoint = open_checkpoint(path)
    except errors.PickleFormatError:
        return
    assert len(checkpoint.tensors) == 2 or any("encoder" in note for note in checkpoint.notes)


def test_complex128_is_refused_as_a_dtype(save: Callable[..., Path]) -> None:
    """A dtype that the format cannot hold is refused with a word of ours."""
    with pytest.raises(errors.CheckpointError, match=r"[Cc]omplex"):
        open_checkpoint(save({"w": torch.zeros(2, dtype=torch.complex128)}))


@pytest.mark.parametrize("what", [3, None, [], {}, {"a": 1}, {"a": {"b": 2}}, "text", (1, 2), {"model": {"a": 1}}])
def test_no_state_dict(what: object, save: Callable[..., Path]) -> None:
    """A file without tensors is no state dict."""
    with pytest.raises(errors.PickleFormatError, match="no state dict"):
        open_checkpoint(save(what))


def test_a_whole_module_is_refused(save: Callable[..., Path]) -> None:
    """A pickled module names its class, which is never imported."""
    with torch.random.fork_rng():
        path = save(torch.nn.Linear(2, 2))
    with pytest.raises(errors.UnsafePickleError, match=r"torch\.nn\.modules\.linear\.Linear"):
        open_checkpoint(path)


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_corpus_is_near_good(container: str, tmp_path: Path) -> None:
    """The hand-written pickle that the hostile ones vary opens, here and in torch."""
    path = tmp_path / "model.pt"
    # The older form states a view of the storage too; none.
    program = GOOD.replace(b"I4\ntQ", b"I4\nNtQ") if container == "legacy" else GOOD
    path.write_bytes(CONTAINERS[container](program))
    assert raw(torch.load(path, weights_only=False)["w"]) == bytes(16)
    assert_read_as(path, {"w": torch.zeros(4)})


@pytest.mark.parametrize("damage", ["compression", "encrypted", "bytes"])
def test_provenance_of_a_damaged_archive(damage: str, tmp_path: Path) -> None:
    """Whatever a zip archive can be damaged in, it is no output of ours, and the damage is told, not raised."""
    path = tmp_path / "out.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("out/" + PROVENANCE_MEMBER, b"{}" * 500)
    content = bytearray(path.read_bytes())
    local, central = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    if damage == "compression":
        content[local + 8] = content[central + 10] = 97
    elif damage == "encrypted":
        content[local + 6] |= 1
        content[central + 8] |= 1
    else:
        start = local + 30 + len("out/" + PROVENANCE_MEMBER)
        content[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert read_provenance(path) is None
    assert damaged_member(path)


def test_a_provenance_that_would_grow(tmp_path: Path) -> None:
    """A compressed member that calls itself provenance costs no memory, whatever it would grow to."""
    path = tmp_path / "out.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("out/" + PROVENANCE_MEMBER, bytes(32 << 20))
    tracemalloc.start()
    try:
        assert read_provenance(path) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_archive_is_sealed_once(tmp_path: Path) -> None:
    """A run that goes on after another was stopped between its seal and its rename makes the same bytes."""
    path = tmp_path / "model.pt"
    write_skeleton(path, [("w", "F32", (3,))], {})
    seal(path, b"{}")
    once = path.read_bytes()
    path.write_bytes(once[:-32] + b"0" * 32)  # stopped before the seal's digest
    assert is_sealed_archive(path) is False
    for _ in range(2):
        seal(path, b"{}")
        assert path.read_bytes() == once
    assert is_sealed_archive(path)
    assert torch.equal(torch.load(path, mmap=True)["w"], torch.zeros(3))


def test_a_merge_reads_no_pickle_to_seal_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies where in a ``.pt`` is known when it is sealed, and to ``verify``: its pickle is not read again."""
    for name in ("a", "b"):
        torch.save({"w": torch.randn(3), "v": torch.randn(2, 2)}, tmp_path / f"{name}.pt")
    read: list[str] = []
    real = _pickle_writer.read_state_dict

    def told(handle: Any, path: str) -> Any:
        read.append(path)
        return real(handle, path)

    monkeypatch.setattr(_pickle_writer, "read_state_dict", told)
    out = tmp_path / "out.pt"
    stockpot.merge("linear", models=[tmp_path / "a.pt", tmp_path / "b.pt"], out=out)
    assert len(read) == 1  # of the skeleton, for the places
    assert is_sealed_archive(out)
    assert len(read) == 2
    assert stockpot.verify(out).problems == ()
    assert len(read) == 2
