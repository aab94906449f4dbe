"""Pickles that ask for code, lie or multiply: refused by an error of ours, and nothing of them run."""

from __future__ import annotations

import copyreg
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpot import errors
from stockpot.checkpoint import open_checkpoint

from ._corpus import CODE, CONTAINERS, DAMAGED, GOOD, STORAGE, TENSOR, TENSORS, armed, legacy_file, zip_file

QUIET = settings(derandomize=True, deadline=None, max_examples=200)
FORMS = {"zip": True, "legacy": False}


def numbers(*shape: int) -> torch.Tensor:
    """Seeded normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


SECONDS = 8
"""Of processor time, for what takes under one; a machine that is busy may take its while."""
MEMORY = 6 << 30


@pytest.mark.parametrize("container", [*CONTAINERS, "bare"])
@pytest.mark.parametrize("case", CODE)
def test_code_is_refused_and_not_run(case: str, container: str, tmp_path: Path) -> None:
    """A pickle that asks for anything but tensors is refused, naming what it asks for; nothing of it is run."""
    program, named = CODE[case]
    mark = tmp_path / "m"
    path = tmp_path / "model.pt"
    hostile = armed(program, mark)
    path.write_bytes(hostile if container == "bare" else CONTAINERS[container](hostile))
    with pytest.raises(errors.UnsafePickleError) as caught:
        open_checkpoint(path)
    assert named in caught.value.what
    assert caught.value.file == str(path)
    assert not mark.exists()


def test_the_corpus_would_do_harm(tmp_path: Path) -> None:
    """Plain pickle runs the first program of the corpus: the test above is not about a harmless file."""
    mark = tmp_path / "m"
    code = "import pickle, sys; pickle.load(sys.stdin.buffer)"
    subprocess.run([sys.executable, "-c", code], input=armed(CODE["reduce"][0], mark), check=True, timeout=10 * SECONDS)
    assert mark.exists()


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_pickles_raise_our_errors_only(case: str, container: str, tmp_path: Path) -> None:
    """A pickle that is no state dict is refused by an error of ours, whatever its opcodes try."""
    path = tmp_path / "model.pt"
    path.write_bytes(CONTAINERS[container](DAMAGED[case]))
    with pytest.raises(errors.CheckpointError) as caught:
        open_checkpoint(path)
    assert caught.value.file == str(path)
    caught.value.line().encode()


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("case", TENSORS)
def test_tensors_outside_their_storage_are_refused(case: str, container: str, tmp_path: Path) -> None:
    """Offsets, shapes and strides that leave the storage are refused when the file is opened."""
    path = tmp_path / "model.pt"
    path.write_bytes(CONTAINERS[container](TENSORS[case]))
    with pytest.raises(errors.CheckpointError) as caught:
        open_checkpoint(path)
    caught.value.line().encode()


@pytest.fixture
def extension(tmp_path: Path) -> Iterator[bytes]:
    """os.system registered as a pickle extension; a program that calls it."""
    copyreg.add_extension("posix", "system", 240)
    try:
        yield b"\x82\xf0(S'touch " + str(tmp_path / "m").encode() + b"'\ntR."
    finally:
        copyreg.remove_extension("posix", "system", 240)
        copyreg._extension_cache.pop(240, None)  # type: ignore[attr-defined]  # private: typeshed has none


@pytest.mark.parametrize("cached", [False, True])
def test_the_extension_registry_is_no_way_in(cached: bool, extension: bytes, tmp_path: Path) -> None:
    """A function that some library registered as an extension is refused like any other, even once it was looked up."""
    if cached:
        copyreg._extension_cache[240] = os.system  # type: ignore[attr-defined]  # private: typeshed has none
    path = tmp_path / "model.pt"
    path.write_bytes(zip_file(extension))
    with pytest.raises(errors.CheckpointError):
        open_checkpoint(path)
    assert not (tmp_path / "m").exists()


LONG_LIST = b"((S'k'\nI1\ntp0\n(l(" + b"h\x00" * 100_000 + b"ep1\n\x85p2\nccollections\nOrderedDict\np3\n"
LONG_SHAPE = b"((" + STORAGE + b"I0\n(" + b"I1\n" * 100_000 + b"t2I00\nNtp2\nctorch._utils\n_rebuild_tensor_v2\np3\n"
REPEATED = b"h\x03h\x02R0" * 20_000 + b"."
"""Calls of the third memo place on the second, thrown away."""
BOMBS: dict[str, bytes] = {
    "many marks": b"(" * 300_000 + b".",
    "tuples in tuples": b")" + b"\x85" * 300_000 + b".",
    "lists in lists": b"]" * 200_000 + b"a" * 199_999 + b".",
    "tuples in tuples, as a key": b"(d)" + b"\x85" * 300_000 + b"I1\ns.",
    "tuples in tuples, as a storage key": b"(S'storage'\nctorch\nFloatStorage\n)"
    + b"\x85" * 300_000
    + b"S'cpu'\nI4\ntQ.",
    "two to the sixtieth, as a key": b"(d)" + b"2\x86" * 60 + b"I1\ns.",
    "two to the sixtieth, as a storage key": b"(S'storage'\nctorch\nFloatStorage\n)"
    + b"2\x86" * 60
    + b"S'cpu'\nI4\ntQ.",
    "two to the sixtieth, as an id": b")" + b"2\x86" * 60 + b"Q.",
    "a long list of pairs, many times": LONG_LIST + REPEATED,
    "a long shape, many times": LONG_SHAPE + REPEATED,
    "a memo of 67 million places": b"(dr\xff\xff\xff\x03I1\n.",
    "a map in itself": b"}q\x00h\x00h\x00s.",
    "a list in itself": b"]q\x00h\x00a.",
    "a state dict in itself": b"}q\x00(S'state_dict'\nh\x00u.",
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_refused(case: str, container: str, tmp_path: Path) -> None:
    """A small pickle that nests or multiplies is refused: no crash, no hang, no gigabytes."""
    path = tmp_path / "model.pt"
    path.write_bytes(CONTAINERS[container](BOMBS[case]))
    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))\n"
        f"resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))\n"
        "from stockpot import errors\n"
        "from stockpot.checkpoint import open_checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    open_checkpoint(sys.argv[1])\n"
        "except errors.CheckpointError as error:\n    print(error.line()[:2000])\n"
        "else:\n    raise SystemExit('opened')\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "if grown > 300_000:\n    raise SystemExit(f'took {grown} KiB')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=10 * SECONDS)
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])
    assert len(done.stdout) < 1000


def test_legacy_file_cut_short(tmp_path: Path) -> None:
    """A legacy file that ends inside its weights is refused when it is opened, as truncated."""
    path = tmp_path / "model.pt"
    torch.save({"w": numbers(100)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(errors.CheckpointError):
        open_checkpoint(path)


@pytest.mark.parametrize("count", [-1, -(2**63), 2**40, 2**61, 2**63 - 1])
def test_legacy_storage_of_a_lying_size(count: int, tmp_path: Path) -> None:
    """A storage whose stated count is negative, or beyond the file, is refused."""
    path = tmp_path / "model.pt"
    path.write_bytes(legacy_file(GOOD, counts=(count,)))
    with pytest.raises(errors.CheckpointError):
        open_checkpoint(path)


@pytest.mark.parametrize("keys", [None, 3, {"0": 1}, (), ("1",), (("0",),), "0", (10**5000,)])
def test_legacy_storage_keys_that_lie(keys: object, tmp_path: Path) -> None:
    """A list of storages that lacks the tensor's, or is no list, is refused."""
    path = tmp_path / "model.pt"
    path.write_bytes(legacy_file(GOOD, keys=keys, counts=(4, 4)))
    with pytest.raises(errors.CheckpointError):
        open_checkpoint(path)


def test_big_endian_is_refused(tmp_path: Path) -> None:
    """Weights of another byte order are not read as if they were ours."""
    content = zip_file(GOOD).replace(b"little", b"BIGGER")
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(errors.CheckpointError):
        open_checkpoint(tmp_path / "model.pt")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/data.pkl", GOOD)
        archive.writestr("a/byteorder", "big")
        archive.writestr("a/data/0", bytes(16))
    (tmp_path / "model.pt").write_bytes(stream.getvalue())
    with pytest.raises(errors.PickleFormatError, match="endian"):
        open_checkpoint(tmp_path / "model.pt")


def archive_of(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


ARCHIVES: dict[str, bytes] = {
    "of nothing": archive_of({}),
    "of text": archive_of({"a.txt": b"x"}),
    "of two pickles": archive_of({"a/data.pkl": GOOD, "b/data.pkl": GOOD}),
    "without the storage": archive_of({"a/data.pkl": GOOD}),
    "with a short storage": archive_of({"a/data.pkl": GOOD, "a/data/0": bytes(15)}),
    "with a compressed storage": archive_of({"a/data.pkl": GOOD, "a/data/0": bytes(16)}, zipfile.ZIP_DEFLATED),
    "cut": zip_file(GOOD)[:-30],
    "cut in the middle": zip_file(GOOD)[:100],
    "a lone magic": b"PK\x03\x04",
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_damaged_archives(case: str, tmp_path: Path) -> None:
    """An archive that is cut, or lacks its parts, is refused by an error of ours that names the file."""
    (tmp_path / "model.pt").write_bytes(ARCHIVES[case])
    with pytest.raises(errors.CheckpointError) as caught:
        open_checkpoint(tmp_path / "model.pt")
    assert caught.value.file == str(tmp_path / "model.pt")


def test_archive_member_that_claims_more_than_the_file(tmp_path: Path) -> None:
    """A storage whose size in the archive's directory reaches beyond the file is refused when it is opened."""
    program = GOOD.replace(b"I4\ntQ", b"I4000\ntQ").replace(b"(I4\nt", b"(I4000\nt")
    content = zip_file(program)
    at = content.rindex(b"archive/data/0") - 46
    assert content[at : at + 4] == b"PK\x01\x02"
    lying = content[: at + 20] + (16000).to_bytes(4, "little") * 2 + content[at + 28 :]
    (tmp_path / "model.pt").write_bytes(lying)
    with pytest.raises(errors.CheckpointError):
        open_checkpoint(tmp_path / "model.pt")


def good_bytes(container: str) -> bytes:
    """A right file of torch, of tensors, a tie, a wrapper and junk."""
    stream = io.BytesIO()
    shared = numbers(2, 2)
    what: dict[str, Any] = {
        "epoch": 1,
        "model": {"module.a": shared, "module.b": shared, "module.c": numbers(3).half()},
    }
    torch.save(what, stream, _use_new_zipfile_serialization=FORMS[container])
    return stream.getvalue()


GOOD_FILES = {container: good_bytes(container) for container in FORMS}


def open_quietly(content: bytes, folder: Path) -> None:
    """Open and read a file; errors of ours are fine, others are not."""
    path = folder / "fuzz.pt"
    path.write_bytes(content)
    try:
        checkpoint = open_checkpoint(path)
    except errors.CheckpointError as error:
        error.line().encode()
        return
    for info in checkpoint.tensors.values():
        checkpoint.read_into(info, 0, memoryview(bytearray(info.nbytes)))
    checkpoint.close()


@pytest.mark.parametrize("container", FORMS)
@QUIET
@given(data=st.data())
def test_damaged_files_raise_our_errors_only(
    container: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes changed, put in, taken out, or cut off: refused by one of our errors, or readable to the last byte."""
    content = GOOD_FILES[container]
    at = data.draw(st.integers(0, len(content) - 1))
    byte = bytes([data.draw(st.integers(0, 255))])
    damaged = {
        "set": content[:at] + byte + content[at + 1 :],
        "cut": content[:at],
        "insert": content[:at] + byte + content[at:],
        "drop": content[:at] + content[at + 1 :],
        "hole": content[:at] + bytes(8) + content[at + 8 :],
    }[data.draw(st.sampled_from(["set", "set", "set", "cut", "insert", "drop", "hole"]))]
    open_quietly(damaged, tmp_path_factory.getbasetemp())


OPCODES = st.lists(
    st.sampled_from(
        [
            b"(",
            b"0",
            b"1",
            b"2",
            b"I4\n",
            b"I-1\n",
            b"N",
            b"}",
            b"]",
            b")",
            b"t",
            b"d",
            b"l",
            b"s",
            b"u",
            b"a",
            b"e",
            b"b",
            b"R",
            b"Q",
            b"\x81",
            b"\x85",
            b"\x86",
            b"\x87",
            b"q\x00",
            b"h\x00",
            b"\x88",
            b"S'w'\n",
            b"\x8f",
            b"\x90",
            b"\x91",
            b"ccollections\nOrderedDict\n",
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"ctorch\nFloatStorage\n",
            b"cargparse\nNamespace\n",
            b"ctorch\nSize\n",
            b"ctorch.nn.parameter\nParameter\n",
            b"o",
            TENSOR,
            b"(dS'w'\n" + TENSOR + b"s",
        ]
    ),
    max_size=14,
)


@settings(QUIET, max_examples=400)
@given(program=OPCODES)
def test_any_program_raises_our_errors_only(program: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Opcodes in any order over the globals that we know end in one of our errors, or in a state dict."""
    open_quietly(zip_file(b"".join(program) + b"."), tmp_path_factory.getbasetemp())
