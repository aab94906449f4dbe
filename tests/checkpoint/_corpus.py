"""Hostile files as literal bytes: safetensors headers that lie, and pickles that want more than tensors."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def file_bytes(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file: 8 bytes of header length (the true one unless given), the header, the data."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(shape: bytes = b"[2]", offsets: bytes = b"[0,8]", dtype: bytes = b'"F32"') -> bytes:
    """One header entry."""
    return b'{"dtype":' + dtype + b',"shape":' + shape + b',"data_offsets":' + offsets + b"}"


def one(shape: bytes = b"[2]", offsets: bytes = b"[0,8]", dtype: bytes = b'"F32"', data: int = 8) -> bytes:
    """A file of one tensor ``w``."""
    return file_bytes(b'{"w":' + entry(shape, offsets, dtype) + b"}", bytes(data))


def two(first: bytes, second: bytes, data: int = 16) -> bytes:
    """A file of two F32 tensors of two elements each, at these offsets."""
    return file_bytes(b'{"v":' + entry(offsets=first) + b',"w":' + entry(offsets=second) + b"}", bytes(data))


@dataclass(frozen=True)
class Lie:
    """A damaged file, the kind of its refusal, and what the message must say beside the file's name."""

    content: bytes
    kind: str
    says: tuple[str, ...] = ()


HEADERS: dict[str, Lie] = {
    "empty file": Lie(b"", "truncated_file", ("expected at least 8 bytes", "got 0 bytes")),
    "seven bytes": Lie(b"\x02\0\0\0\0\0\0", "truncated_file", ("got 7 bytes",)),
    "length beyond the file": Lie(
        file_bytes(b"{}", length=100), "truncated_file", ("expected 108 bytes or more", "got 10 bytes", "again")
    ),
    "length absurd": Lie(b"\xff" * 8 + b"{}", "header_length", ("expected at most 100000000", "18446744073709551615")),
    "length one over the cap": Lie(file_bytes(b"{}", length=100_000_001), "header_length", ("100000001",)),
    "length zero": Lie(bytes(8), "header_syntax", ("not a JSON object",)),
    "not JSON": Lie(file_bytes(b"{not json}"), "header_syntax", ("not JSON",)),
    "cut JSON": Lie(file_bytes(b'{"w":'), "header_syntax", ("not JSON",)),
    "two objects": Lie(file_bytes(b"{}{}"), "header_syntax", ("not JSON",)),
    "a list": Lie(file_bytes(b"[]"), "header_syntax", ("not a JSON object",)),
    "a space first": Lie(file_bytes(b" {}"), "header_syntax", ("not a JSON object",)),
    "not UTF-8": Lie(file_bytes(b'{"\xff":' + entry() + b"}", bytes(8)), "header_syntax", ("not JSON",)),
    "half a surrogate": Lie(file_bytes(b'{"\\ud800":' + entry() + b"}", bytes(8)), "header_syntax"),
    "nested too deeply": Lie(file_bytes(b'{"a":' + b"[" * 100_000), "header_syntax", ("not JSON",)),
    "a number of 5000 digits": Lie(one(b"[" + b"9" * 5000 + b"]"), "header_syntax"),
    "a name twice": Lie(
        file_bytes(b'{"w":' + entry() + b',"w":' + entry() + b"}", bytes(8)), "duplicate_name", ("tensor w",)
    ),
    "an entry that is a number": Lie(file_bytes(b'{"w":3}'), "header_syntax", ("tensor w", "got 3")),
    "an entry without dtype": Lie(
        file_bytes(b'{"w":{"shape":[],"data_offsets":[0,0]}}'), "header_syntax", ("tensor w",)
    ),
    "an entry with more": Lie(
        file_bytes(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"code":"x"}}', bytes(8)),
        "header_syntax",
        ("tensor w",),
    ),
    "dtype unknown": Lie(one(dtype=b'"F99"'), "unknown_dtype", ("tensor w", "got 'F99'")),
    "dtype a number": Lie(one(dtype=b"32"), "unknown_dtype", ("tensor w", "got 32")),
    "dtype a list": Lie(one(dtype=b'["F32"]'), "unknown_dtype", ("tensor w",)),
    "dtype null": Lie(one(dtype=b"null"), "unknown_dtype", ("tensor w",)),
    "shape negative": Lie(one(b"[-2]"), "bad_shape", ("tensor w", "got [-2]")),
    "shape of two negatives": Lie(one(b"[-1,-2]"), "bad_shape", ("tensor w",)),
    "shape with true": Lie(one(b"[true,2]"), "bad_shape", ("tensor w", "got [True, 2]")),
    "shape with a fraction": Lie(one(b"[2.0]"), "bad_shape", ("tensor w", "got [2.0]")),
    "shape with infinity": Lie(one(b"[Infinity]"), "bad_shape", ("tensor w",)),
    "shape with text": Lie(one(b'["2"]'), "bad_shape", ("tensor w",)),
    "shape null": Lie(one(b"null"), "bad_shape", ("tensor w",)),
    "shape a number": Lie(one(b"2"), "bad_shape", ("tensor w",)),
    "shape of rank 65": Lie(one(b"[" + b"1," * 64 + b"2]"), "bad_shape", ("tensor w",)),
    "shape product absurd": Lie(one(b"[1099511627776,1099511627776]"), "bad_shape", ("tensor w", "absurd")),
    "shape product absurd, offsets too": Lie(
        one(b"[4611686018427387904,4]", b"[0,73786976294838206464]"), "bad_shape", ("tensor w", "absurd")
    ),
    "shape absurd beside a zero": Lie(one(b"[0,18446744073709551616]", b"[0,0]", data=0), "bad_shape", ("tensor w",)),
    "shape too large for its bytes": Lie(one(b"[3]"), "bad_shape", ("tensor w", "expected 12 bytes", "got 8")),
    "shape too small for its bytes": Lie(one(b"[1]"), "bad_shape", ("tensor w", "expected 4 bytes", "got 8")),
    "half a byte over": Lie(one(b"[3]", b"[0,1]", b'"F4"', 1), "bad_shape", ("tensor w", "whole bytes")),
    "offsets of three": Lie(one(offsets=b"[0,4,8]"), "offset", ("tensor w",)),
    "offsets null": Lie(one(offsets=b"null"), "offset", ("tensor w",)),
    "offsets negative": Lie(one(offsets=b"[-8,0]"), "offset", ("tensor w", "got [-8, 0]")),
    "offsets with true": Lie(one(b"[]", b"[false,4]", data=4), "offset", ("tensor w",)),
    "offsets with fractions": Lie(one(offsets=b"[0.0,8.0]"), "offset", ("tensor w",)),
    "offsets backwards": Lie(one(offsets=b"[8,0]"), "offset", ("tensor w", "got [8, 0]")),
    "offsets beyond the file": Lie(one(data=7), "truncated_file", ("tensor w", "expected", "got", "again")),
    "overlap by half": Lie(two(b"[0,8]", b"[4,12]", 12), "overlap", ("tensor w", "expected data offset 8", "got 4")),
    "overlap whole": Lie(two(b"[0,8]", b"[0,8]", 8), "overlap", ("expected data offset 8", "got 0")),
    "hole between": Lie(two(b"[0,8]", b"[9,17]", 17), "hole", ("tensor w", "expected data offset 8", "got 9")),
    "hole before": Lie(one(offsets=b"[4,12]", data=12), "hole", ("tensor w", "expected data offset 0", "got 4")),
    "bytes after the last": Lie(one(data=9), "hole", ("after the last tensor",)),
    "bytes and no tensor": Lie(file_bytes(b"{}", b"x"), "hole", ("after the last tensor",)),
    "metadata of numbers": Lie(file_bytes(b'{"__metadata__":{"a":1}}'), "header_syntax", ("__metadata__",)),
    "metadata a list": Lie(file_bytes(b'{"__metadata__":["a"]}'), "header_syntax", ("__metadata__",)),
    "metadata an empty list": Lie(file_bytes(b'{"__metadata__":[]}'), "header_syntax", ("__metadata__",)),
    "metadata zero": Lie(file_bytes(b'{"__metadata__":0}'), "header_syntax", ("__metadata__",)),
}


MARK = b"@MARK@"
"""Stands for the path of the file that a hostile pickle would write."""
TOUCH = b"touch " + MARK
WRITE = b"open('" + MARK + b"', 'w')"
STORAGE = b"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ"
"""A storage of four floats, by persistent id."""
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE[1:] + b"I0\n(I4\nt(I1\ntI00\nNtR"
"""A tensor of four floats."""

CODE: dict[str, tuple[bytes, str]] = {
    "reduce": (b"cos\nsystem\n(S'" + TOUCH + b"'\ntR.", "os.system"),
    "reduce, posix": (b"cposix\nsystem\n(S'" + TOUCH + b"'\ntR.", "posix.system"),
    "eval": (b'cbuiltins\neval\n(S"' + WRITE + b'"\ntR.', "builtins.eval"),
    "exec, by its old name": (b'c__builtin__\nexec\n(S"' + WRITE + b'"\ntR.', "exec"),
    "getattr": (b"cbuiltins\ngetattr\n(cbuiltins\ndict\nS'fromkeys'\ntR.", "builtins.getattr"),
    "import": (b"cbuiltins\n__import__\n(S'antigravity'\ntR.", "builtins.__import__"),
    "stack global": (
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93U" + b"%LENGTH%" + TOUCH + b"\x85R.",
        "posix.system",
    ),
    "inst": (b"(S'" + TOUCH + b"'\nios\nsystem\n.", "os.system"),
    "obj": (b"(cos\nsystem\nS'" + TOUCH + b"'\no.", "os.system"),
    "newobj": (b"\x80\x02csubprocess\nPopen\n(S'" + TOUCH + b"'\nt\x81.", "subprocess.Popen"),
    "newobj with keywords": (b"\x80\x04csubprocess\nPopen\n(S'" + TOUCH + b"'\nt}\x92.", "subprocess.Popen"),
    "inside a state dict": (b"(dS'w'\n" + TENSOR + b"sS'x'\ncos\nsystem\n(S'" + TOUCH + b"'\ntRs.", "os.system"),
    "as a key": (b"(d(cos\nsystem\n(S'" + TOUCH + b"'\ntRtS'w'\ns.", "os.system"),
    "as a persistent id": (b"cos\nsystem\n(S'" + TOUCH + b"'\ntRQ.", "os.system"),
    "as the state of a class": (b"ccollections\nOrderedDict\n)Rcos\nsystem\n(S'" + TOUCH + b"'\ntRb.", "os.system"),
    "in what a tensor is made of": (
        b"ctorch._utils\n_rebuild_tensor_v2\n(cos\nsystem\n(S'" + TOUCH + b"'\ntRI0\n(I4\nt(I1\ntI00\nNtR.",
        "os.system",
    ),
    "as the type of a rebuilt tensor": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncbuiltins\nint\n(S'" + TOUCH + b"'\ntNtR.",
        "os.system",
    ),
    "a pickle in a storage": (
        b"ctorch.storage\n_load_from_bytes\n(S'cos\\nsystem\\n'\ntR.",
        "torch.storage._load_from_bytes",
    ),
    "an attribute of a known class": (
        b"\x80\x04\x8c\x0bcollections\x8c\x15OrderedDict.__class__\x93.",
        "collections.OrderedDict.__class__",
    ),
    "a module behind a known one": (
        b"\x80\x04\x8c\x05torch\x8c\x17serialization.os.system\x93.",
        "torch.serialization.os.system",
    ),
    "our own classes": (
        b"cstockpot.checkpoint._files\nFilePool\n((lp0\nS'x'\natR.",
        "stockpot.checkpoint._files.FilePool",
    ),
    "a partial": (b"cfunctools\npartial\n(cos\nsystem\ntR.", "functools.partial"),
    "a hub": (b"ctorch.hub\nload\n(S'a/b'\nS'c'\ntR.", "torch.hub.load"),
}
"""Programs for the pickle machine that ask for code, and the name that the refusal must give."""

DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "no stop": b"(d",
    "unknown opcode": b"\xfe.",
    "pops too much": b"000.",
    "memo without put": b"g7\n.",
    "a number": b"I3\n.",
    "none": b"N.",
    "an empty map": b"}.",
    "a map of numbers": b"(dS'w'\nI1\ns.",
    "a name that is a number": b"(dI1\n" + TENSOR + b"s.",
    "a list of tensors": b"(l" + TENSOR + b"a.",
    "half a surrogate in a name": b"\x80\x02}X\x03\0\0\0\xed\xa0\x80" + TENSOR + b"s.",
    "a huge text": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x3fabc.",
    "huge bytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x3fabc.",
    "a huge bytearray": b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x3fabc.",
    "a huge frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x3fN.",
    "an out-of-band buffer": b"\x80\x05\x97.",
    "a number of 100,000 digits": b"I" + b"9" * 100_000 + b"\n.",
    "an unregistered extension": b"\x82\xf0.",
    "an extension of zero": b"\x84\0\0\0\0.",
    "persistent id a number": b"I5\nQ.",
    "persistent id of text": b"P0\n.",
    "persistent id too short": b"(S'storage'\nctorch\nFloatStorage\ntQ.",
    "persistent id of another kind": b"(S'module'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ.",
    "a storage type that is text": b"(S'storage'\nS'FloatStorage'\nS'0'\nS'cpu'\nI4\ntQ.",
    "a view of nothing": b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\n)tQ.",
    "no storage": b"ctorch._utils\n_rebuild_tensor_v2\n(NI0\n(I4\nt(I1\ntI00\nNtR.",
    "too few arguments": b"ctorch._utils\n_rebuild_tensor_v2\n(tR.",
    "a dtype that is called": b"ctorch\nFloatStorage\n(I4\ntR.",
    "state of a dtype": b"ctorch\nfloat32\n(dS'code'\nS'F64'\nsb.",
    "state of a rebuilder": b"ctorch._utils\n_rebuild_tensor_v2\nN(dS'name'\nS'x'\ns\x86b(tR.",
    "methods of a map overwritten": b"ccollections\nOrderedDict\n)R(dS'values'\nI1\nsb.",
    "look-up of a map overwritten": b"ccollections\nOrderedDict\n)R(dS'get'\nI1\nsb.",
    "items of a map overwritten": b"ccollections\nOrderedDict\n)R(dS'items'\nI1\nsS'values'\nNsb.",
    "methods of the map's class overwritten": b"ccollections\nOrderedDict\nN(dS'items'\nI1\nsS'values'\nI1\ns\x86b)R.",
    "methods of an opaque class overwritten": b"cargparse\nNamespace\nN(dS'__init__'\nI1\ns\x86b)R.",
}
"""Pickles that ask for no code and hold no state dict."""


def _rebuild(offset: bytes, shape: bytes, strides: bytes) -> bytes:
    return (
        b"(dS'w'\nctorch._utils\n_rebuild_tensor_v2\n("
        + STORAGE[1:]
        + offset
        + b"("
        + shape
        + b"t("
        + strides
        + b"tI00\nNtRs."
    )


def _built(state: bytes) -> bytes:
    """A state dict whose tensor is given a state after it was made."""
    return b"(dS'w'\n" + TENSOR + state + b"bs."


_PARTS = b"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ"
TENSORS: dict[str, bytes] = {
    "offset negative": _rebuild(b"I-1\n", b"I4\n", b"I1\n"),
    "offset beyond": _rebuild(b"I1\n", b"I4\n", b"I1\n"),
    "offset true": _rebuild(b"I01\n", b"I2\n", b"I1\n"),
    "shape beyond": _rebuild(b"I0\n", b"I5\n", b"I1\n"),
    "shape negative": _rebuild(b"I0\n", b"I-4\n", b"I1\n"),
    "shape absurd": _rebuild(b"I0\n", b"L99999999999999999999L\nI4\n", b"I0\nI0\n"),
    "shape absurd beside a zero": _rebuild(b"I0\n", b"I0\nL99999999999999999999L\n", b"I0\nI0\n"),
    "shape of text": _rebuild(b"I0\n", b"S'4'\n", b"I1\n"),
    "more strides than sizes": _rebuild(b"I0\n", b"I4\n", b"I1\nI1\n"),
    "strides beyond": _rebuild(b"I0\n", b"I2\nI2\n", b"I3\nI1\n"),
    "strides negative": _rebuild(b"I3\n", b"I4\n", b"I-1\n"),
    "a storage that is not there": b"(dS'w'\n" + TENSOR.replace(b"S'0'", b"S'1'") + b"s.",
    "state: a negative offset": _built(b"(" + _PARTS[1:] + b"S'F32'\nI-4000\n(I4\nt(I1\ntl"),
    "state: a shape of text": _built(b"(" + _PARTS[1:] + b"S'F32'\nI0\nS'abcd'\n(I1\ntl"),
    "state: a dtype of nothing": _built(b"(" + _PARTS[1:] + b"S'F99'\nI0\n(I4\nt(I1\ntl"),
    "state: numbers": _built(b"(I1\nI2\nI3\nI4\nI5\nl"),
}
"""State dicts of one tensor over a storage of four floats that does not fit it."""


def armed(program: bytes, mark: Path) -> bytes:
    """The program with the path that it would write."""
    path = str(mark).encode()
    return program.replace(b"%LENGTH%", bytes([len(b"touch " + path)])).replace(MARK, path)


def zip_file(program: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """What torch >= 1.6 writes: an archive of the pickle and its storages."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        for key, content in ({"0": bytes(16)} if storages is None else storages).items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def legacy_file(
    program: bytes, keys: object = ("0",), counts: tuple[int, ...] = (4,), data: bytes = bytes(16)
) -> bytes:
    """What torch < 1.6 wrote: magic, protocol, system, the pickle, the storage keys, then counts and bytes."""
    system = {"protocol_version": 1001, "little_endian": True}
    head = b"".join(pickle.dumps(part, 2) for part in (LEGACY_MAGIC, 1001, system))
    body = b"".join(struct.pack("<q", count) for count in counts) + data
    return head + program + pickle.dumps(list(keys) if isinstance(keys, tuple) else keys, 2) + body


CONTAINERS = {"zip": zip_file, "legacy": legacy_file}
GOOD = b"(dS'w'\n" + TENSOR + b"s."
"""A state dict of one tensor of four floats: the corpus is only as bad as it says if this one opens."""
