"""Headers of safetensors files: literal bytes, the format's own library both ways, and lies."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpot import errors
from stockpot.checkpoint import TORCH_NAMES, Checkpoint, _dtypes, _header, open_checkpoint

from ._corpus import HEADERS, Lie, entry, file_bytes

QUIET = settings(derandomize=True, deadline=None, max_examples=200)
GOLDEN = (
    b"\xa0\x00\x00\x00\x00\x00\x00\x00"
    b'{"__metadata__":{"format":"pt"},'
    b'"w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},'
    b'"n":{"dtype":"I64","shape":[],"data_offsets":[8,16]}}'
    b"                "
)
EXTRA = {"float4_e2m1fn_x2"}
"""One torch element of these is two of the format's."""
DTYPES = [name for name in TORCH_NAMES.values() if hasattr(torch, name) and name not in EXTRA]


def of_dtype(name: str) -> torch.Tensor:
    """Twelve elements of any dtype, from bytes that are finite in all of them."""
    dtype = getattr(torch, name)
    if dtype is torch.bool:
        return torch.tensor([[True, False, True], [False, False, True]])
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.arange(6 * size, dtype=torch.uint8) % 50
    return raw.view(dtype).reshape(2, 3)


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor, row-major."""
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy())


def read(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Everything in a file, by our reader."""
    checkpoint = open_checkpoint(path)
    found = {}
    for name, info in checkpoint.tensors.items():
        out = bytearray(info.nbytes)
        checkpoint.read_into(info, 0, memoryview(out))
        found[name] = (info.dtype, info.shape, bytes(out))
    checkpoint.close()
    return found


def opened(content: bytes, folder: Path) -> object:
    """Open these bytes as a file."""
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return open_checkpoint(path)


def test_built_header_is_golden() -> None:
    """The header is the literal bytes of the format: length, compact JSON, spaces up to a multiple of eight."""
    built = _header.build([("w", "F32", (2, 1)), ("n", "I64", ())], {"format": "pt"})
    text = GOLDEN[8:].rstrip()
    length = -(-len(text) // 8) * 8
    assert built == struct.pack("<Q", length) + text.ljust(length)


def test_golden_file_is_read() -> None:
    """Literal bytes give names, dtypes, shapes, offsets and metadata."""
    infos, metadata = _header.parse(GOLDEN[8:], 16, "x")
    assert metadata == {"format": "pt"}
    assert [(i.name, i.dtype, i.shape, i.offset, i.nbytes) for i in infos] == [
        ("w", "F32", (2, 1), len(GOLDEN), 8),
        ("n", "I64", (), len(GOLDEN) + 8, 8),
    ]


def test_header_with_reserve_parses_to_the_same() -> None:
    """Room kept for later metadata is spaces, which change nothing."""
    plain = _header.build([("w", "F32", (2,))], {})
    roomy = _header.build([("w", "F32", (2,))], {}, reserve=1000)
    assert len(roomy) == 1008
    assert roomy[8:].rstrip() == plain[8:].rstrip()


def test_place_has_no_holes() -> None:
    """The one layout function: each range begins where the last ended."""
    assert _header.place([8, 0, 3]) == [(0, 8), (8, 8), (8, 11)]
    assert _header.place([]) == []


def test_names_of_any_letters_survive(tmp_path: Path) -> None:
    """Quotes, backslashes, newlines, letters of any script and the empty name are names."""
    names = ['a"b', "a\\b", "a\nb", "\u00e4\U0001f600", "\x00", " ", ""]
    content = _header.build([(name, "U8", (1,)) for name in names], {}) + bytes(range(len(names)))
    (tmp_path / "m.safetensors").write_bytes(content)
    assert {name: data for name, (_, _, data) in read(tmp_path / "m.safetensors").items()} == {
        name: bytes([number]) for number, name in enumerate(names)
    }
    assert {name for name, _ in safetensors.deserialize(content)} == set(names)


@pytest.mark.parametrize("name", DTYPES)
def test_library_writes_we_read(name: str, tmp_path: Path) -> None:
    """A file of the format's library gives the same dtype, shape and bytes here, 0-d and empty tensors too."""
    tensor = of_dtype(name)
    tensors = {"w": tensor, "scalar": tensor[0, 0].clone(), "empty": tensor[:, :0].clone()}
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors")
    assert read(tmp_path / "m.safetensors") == {
        key: (_dtypes.CODES[name], tuple(value.shape), raw(value)) for key, value in tensors.items()
    }


@pytest.mark.parametrize("name", DTYPES)
def test_we_write_library_reads(name: str, tmp_path: Path) -> None:
    """A file with our header gives the format's library the same tensors."""
    tensor = of_dtype(name)
    tensors = {"w": tensor, "scalar": tensor[0, 0].clone(), "empty": tensor[:, :0].clone()}
    code = _dtypes.CODES[name]
    header = _header.build([(key, code, tuple(value.shape)) for key, value in tensors.items()], {"format": "pt"})
    (tmp_path / "m.safetensors").write_bytes(header + b"".join(map(raw, tensors.values())))
    loaded = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert set(loaded) == set(tensors)
    for key, value in tensors.items():
        assert loaded[key].dtype == value.dtype
        assert loaded[key].shape == value.shape
        assert raw(loaded[key]) == raw(value)


@pytest.mark.parametrize(("dtype", "shape", "size"), [("F4", (2, 3), 3), ("F6_E2M3", (4,), 3), ("F6_E3M2", (8, 1), 6)])
def test_packed_dtypes_are_counted_in_bits(dtype: str, shape: tuple[int, ...], size: int, tmp_path: Path) -> None:
    """Dtypes of less than a byte are opened by their size in whole bytes."""
    (tmp_path / "m.safetensors").write_bytes(_header.build([("w", dtype, shape)], {}) + bytes(size))
    assert read(tmp_path / "m.safetensors") == {"w": (dtype, shape, bytes(size))}


@pytest.mark.parametrize("lie", HEADERS.values(), ids=HEADERS)
def test_each_lie_has_its_own_error(lie: Lie, tmp_path: Path) -> None:
    """A damaged header is refused by its kind, with the file, and with the values that tell what is wrong."""
    with pytest.raises(errors.HeaderError) as caught:
        opened(lie.content, tmp_path)
    assert caught.value.kind == lie.kind
    assert caught.value.file == str(tmp_path / "model.safetensors")
    for words in lie.says:
        assert words in caught.value.line()
    assert len(caught.value.line()) < 1000
    caught.value.line().encode()


@pytest.mark.parametrize("text", [b"{}", b'{"__metadata__":null}', b'{"__metadata__":{}}', b"{}      "])
def test_a_file_without_tensors_opens(text: bytes, tmp_path: Path) -> None:
    """No tensors is no lie."""
    assert read_names(opened(file_bytes(text), tmp_path)) == []


def read_names(checkpoint: Checkpoint) -> list[str]:
    """Names of an opened checkpoint."""
    return list(checkpoint.tensors)


def test_order_in_the_header_is_free(tmp_path: Path) -> None:
    """Entries may stand in any order; the tensors come in the order of their bytes."""
    text = b'{"b":' + entry(offsets=b"[8,16]") + b',"a":' + entry(offsets=b"[0,8]") + b"}"
    assert read_names(opened(file_bytes(text, bytes(16)), tmp_path)) == ["a", "b"]


def test_a_name_twice_is_found_in_linear_time(tmp_path: Path) -> None:
    """One duplicate among 15,000 names is refused without comparing all pairs."""
    empty = entry(b"[0]", b"[0,0]")
    names = [b'"layer.%d.weight":' % number for number in range(15_000)]
    text = b"{" + b",".join(name + empty for name in [*names, names[-1]]) + b"}"
    begun = time.process_time()
    with pytest.raises(errors.DuplicateNameError) as caught:
        opened(file_bytes(text), tmp_path)
    # Parsing takes under 0.1 s; comparing all pairs takes about 4 s.
    assert time.process_time() - begun < 1.0
    assert caught.value.tensor == "layer.14999.weight"


def test_many_tensors_are_opened_in_linear_time(tmp_path: Path) -> None:
    """50,000 tensors are opened in seconds."""
    empty = entry(b"[0]", b"[0,0]")
    text = b"{" + b",".join(b'"t%d":' % number + empty for number in range(50_000)) + b"}"
    begun = time.process_time()
    assert len(read_names(opened(file_bytes(text), tmp_path))) == 50_000
    # About 0.4 s.
    assert time.process_time() - begun < 4.0


NAMES = st.sampled_from(["w", "v", "__metadata__", "", "a.b"])
NUMBERS = st.one_of(
    st.integers(-2, 20), st.sampled_from([2**31, 2**63, 2**64, 10**30]), st.booleans(), st.floats(), st.none()
)
JSON = st.recursive(
    st.one_of(NUMBERS, st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from([*_dtypes.BITS, "F99"]) | JSON,
            "shape": st.lists(NUMBERS, max_size=3) | st.lists(st.integers(0, 3), max_size=2) | JSON,
            "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2) | st.lists(NUMBERS, max_size=3) | JSON,
        }
    ),
    JSON,
)


def agree(content: bytes, folder: Path) -> None:
    """These bytes are refused by one of our errors; or the format's library reads the same from them."""
    refusal = None
    try:
        checkpoint = opened(content, folder)
    except errors.HeaderError as error:
        refusal = error
    if refusal is not None:
        assert refusal.file
        refusal.line().encode()
        return
    theirs = {name: (tuple(part["shape"]), bytes(part["data"])) for name, part in safetensors.deserialize(content)}
    ours = read(folder / "model.safetensors")
    assert {name: (shape, data) for name, (_, shape, data) in ours.items()} == theirs
    assert read_names(checkpoint) == list(ours)


@QUIET
@given(
    header=st.dictionaries(NAMES, ENTRIES, max_size=3), size=st.integers(0, 20), shift=st.sampled_from([0, 0, 0, 1, -1])
)
def test_any_json_is_refused_or_read_as_the_library_does(
    header: dict[str, object], size: int, shift: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Headers of arbitrary JSON raise our errors only, and what we accept the format's library accepts too."""
    text = json.dumps(header).encode()
    agree(file_bytes(text, bytes(size), max(len(text) + shift, 0)), tmp_path_factory.getbasetemp())


@st.composite
def dense(draw: st.DrawFn) -> bytes:
    """A right file of a few tensors of any dtype."""
    specs, data = [], 0
    for name in draw(st.lists(NAMES.filter(lambda name: name != "__metadata__"), unique=True, max_size=4)):
        dtype = draw(st.sampled_from([code for code, bits in _dtypes.BITS.items() if bits >= 8]))
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
        specs.append((name, dtype, shape))
        data += _dtypes.nbytes(dtype, shape)
    return _header.build(specs, draw(st.sampled_from([{}, {"format": "pt"}]))) + bytes(data)


@QUIET
@given(content=dense())
def test_right_files_are_read_as_the_library_does(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What our header builder writes is what both readers read."""
    agree(content, tmp_path_factory.getbasetemp())
    assert safetensors.deserialize(content) is not None


@QUIET
@given(
    content=dense(),
    place=st.integers(0, 400),
    change=st.sampled_from(["flip", "cut", "insert", "drop"]),
    byte=st.integers(1, 255),
)
def test_damaged_files_raise_our_errors_only(
    content: bytes, place: int, change: str, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One byte changed, put in or taken out, or the file cut: refused by one of our errors, or still right."""
    at = place % (len(content) + 1)
    damaged = {
        "flip": content[:at] + bytes([content[at] ^ byte]) + content[at + 1 :] if at < len(content) else content,
        "cut": content[:at],
        "insert": content[:at] + bytes([byte]) + content[at:],
        "drop": content[:at] + content[at + 1 :],
    }[change]
    agree(damaged, tmp_path_factory.getbasetemp())
