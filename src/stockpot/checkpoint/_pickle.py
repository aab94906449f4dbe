"""State dicts saved by ``torch.save``, read without running anything and without loading the weights.

The pickle inside is interpreted by a machine that knows a short list of globals and answers each with something of
ours. What comes out says, for each tensor, where its bytes lie in the file; they are then read by range like those of
any other format. Both forms of file are known: the zip archive (torch >= 1.6, stored uncompressed) and the older
sequence of pickles followed by raw storages.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeVar

from stockpot import errors
from stockpot.checkpoint import _dtypes
from stockpot.checkpoint._header import RANK_CAP, TensorInfo, require_name
from stockpot.checkpoint._pickle_machine import OPAQUE, FindGlobal, Function, PickleError, run

ARCHIVE_ERRORS = (zipfile.BadZipFile, NotImplementedError, OSError, RuntimeError, EOFError, ValueError, zlib.error)
"""What zipfile raises over bytes that nobody vouches for: its own error; a compression that it does not know; a seek to
nowhere; an encrypted member; a member or a name cut short; damaged compressed bytes. Some of our own errors are of
these kinds too, and must be let through first."""
LOCAL_HEADER_BYTES = 30
"""Of a member of an archive, before its name."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
PICKLE_CAP = 1 << 30
"""Largest pickle that is read into memory, in bytes (weights are not part of it)."""
PAIRS_CAP = 1_000_000
"""Items of maps that are written as lists of pairs, in all (one list can be named many times)."""
WRAPPERS = ("state_dict", "model", "state_dict_ema", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")
_NO_MODEL = ("optim", "sched", "scaler", "loss", "rng")
"""Words in the keys of what lies beside a model's weights."""
Leaf = TypeVar("Leaf")

_STORAGE_DTYPES = {
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "UntypedStorage": "U8",
}
OPAQUE_GLOBALS = {
    ("argparse", "Namespace"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
    ("collections", "Counter"),
    ("collections", "defaultdict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib._local", "PosixPath"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.nn.parameter", "Parameter"),
    ("torch.nn", "Parameter"),
    ("torch.serialization", "_get_layout"),
    ("builtins", "set"),
    ("builtins", "int"),
    ("builtins", "list"),
    ("builtins", "dict"),
    ("__builtin__", "set"),
    ("__builtin__", "int"),
    ("__builtin__", "list"),
    ("__builtin__", "dict"),
}
"""Globals that training scripts leave beside the weights; each becomes an object that does nothing."""


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str
    begin: int = 0
    """Elements before this view of the storage (legacy files only)."""


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor of a pickle: a storage, and where in it the elements lie."""

    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_dense(self) -> bool:
        """Whether the elements lie row-major, one after the other."""
        dense = _dense_strides(self.shape)
        same = (n == 1 or got == want for n, got, want in zip(self.shape, self.strides, dense, strict=True))
        return 0 in self.shape or all(same)

    @property
    def extent(self) -> int:
        """Elements of the storage from the first to the last of the tensor's."""
        if self.is_dense:
            return _dtypes.count(self.shape)
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))


@dataclass(frozen=True, slots=True)
class PickledDtype:
    """A dtype that stands in a pickle beside tensors."""

    code: str


def _naturals(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > RANK_CAP or not all(type(v) is int and v >= 0 for v in values):
        raise ValueError("sizes must be numbers >= 0")
    return values


def _rebuild_tensor(storage: object, offset: object, shape: object, strides: object, *_: object) -> PickledTensor:
    if not isinstance(storage, _Storage) or type(offset) is not int or offset < 0:
        raise ValueError("no storage")
    sizes, steps = _naturals(shape), _naturals(strides)
    if len(sizes) != len(steps):
        raise ValueError("shape and strides differ in length")
    return PickledTensor(storage, storage.dtype, storage.begin + offset, sizes, steps)


def _rebuild_tensor_v3(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    grad: object,
    hooks: object,
    dtype: object,
    *_: object,
) -> PickledTensor:
    plain = _rebuild_tensor(storage, offset, shape, strides)
    if not isinstance(dtype, PickledDtype):
        raise ValueError("no dtype")
    return PickledTensor(plain.storage, dtype.code, plain.offset, plain.shape, plain.strides)


def _rebuild_parameter(data: object, *_: object) -> object:
    return data


def _rebuild_from_type(function: object, kind: object, args: object, *_: object) -> object:
    if not isinstance(function, Function) or not isinstance(args, tuple):
        raise ValueError("not a tensor")
    return function.call(args)


_REBUILDERS: Mapping[str, Callable[..., object]] = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_tensor_v3": _rebuild_tensor_v3,
    "_rebuild_parameter": _rebuild_parameter,
    "_rebuild_parameter_with_state": _rebuild_parameter,
    "_rebuild_from_type_v2": _rebuild_from_type,
}


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str)


def _is_key(value: object) -> bool:
    """Whether it may name a storage: text, or a number of sane size."""
    return isinstance(value, str) or (type(value) is int and abs(value) < 1 << 63)


@dataclass
class PickleReader:
    """What one file's pickles may name; remembers the dtype of each storage, which the older form needs."""

    path: str
    storages: dict[str, str] = field(default_factory=dict)
    pairs_left: int = PAIRS_CAP

    def load(self, file: BinaryIO, find_global: FindGlobal | None = None) -> Any:
        """The next pickle; ``find_global``: instead of a state dict's globals."""
        try:
            return run(file, find_global or self.find_global, self.persistent_load)
        except PickleError as error:
            raise errors.PickleFormatError(
                f"the pickle cannot be read ({error})", file=self.path, remedy="copy or download it again"
            ) from None

    def find_global(self, module: str, name: str) -> Any:
        """Something of ours for a global of a state dict; every other is refused by name."""
        if (module, name) == ("collections", "OrderedDict"):
            return Function(self.ordered_dict)
        if module in ("torch._utils", "torch._tensor") and name in _REBUILDERS:
            rebuild = _REBUILDERS[name]
            return Function(lambda arguments: rebuild(*arguments))
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return PickledDtype(_STORAGE_DTYPES[name])
        if module == "torch" and name in _dtypes.CODES:
            return PickledDtype(_dtypes.CODES[name])
        if (module, name) in OPAQUE_GLOBALS:
            return OPAQUE
        shown = f"{module}.{name}".encode("ascii", "backslashreplace").decode()[:200]
        raise errors.UnsafePickleError(
            f"the pickle asks for {shown}, which is not part of a state dict; nothing of it was run",
            file=self.path,
            remedy="load it where you trust it and save the state dict alone, best as safetensors",
        )

    def ordered_dict(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        """``OrderedDict()``, or of a list of pairs as Python 2 pickled it."""
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
        self.pairs_left -= len(pairs)
        if self.pairs_left < 0:
            raise PickleError("absurdly many pairs")
        return {pair[0]: pair[1] for pair in pairs if _is_pair(pair)}

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: ('storage', type, key, location, count[, view])."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], PickledDtype):
            raise PickleError("an unknown persistent id")
        if not _is_key(pid[2]):
            raise PickleError("a storage without a name")
        key, begin = str(pid[2]), 0
        if len(pid) > 5 and isinstance(pid[5], tuple) and len(pid[5]) > 1 and type(pid[5][1]) is int:
            begin = pid[5][1]
            if begin < 0:
                raise PickleError("a storage that begins before itself")
        self.storages[key] = pid[1].code
        return _Storage(key, pid[1].code, begin)


@dataclass(frozen=True, slots=True)
class StateDict:
    """A pickled state dict: its tensors, which names share one storage, and what was unwrapped on the way."""

    tensors: tuple[TensorInfo, ...]
    aliases: Mapping[str, str]
    unwrapped: tuple[str, ...]


def read_state_dict(handle: BinaryIO, text: str, file: int = 0) -> StateDict:
    """Read a ``.bin/.pt/.pth/.ckpt`` file, which messages call ``text``. Cost: its pickle, not its weights."""
    magic = handle.read(4)
    handle.seek(0)
    root, ranges = open_zip(handle, text) if magic == b"PK\x03\x04" else _open_legacy(handle, text)
    size = handle.seek(0, io.SEEK_END)
    for key, (begin, count) in ranges.items():
        if begin + count > size:
            raise errors.TruncatedFileError(
                "the file ends before its storages do", file=text, tensor=f"storage {key[:80]}",
                expected=f"{begin + count} bytes", got=f"{size} bytes", remedy="copy or download it again",
            )  # fmt: skip
    named, unwrapped = unwrap(root, text, PickledTensor)
    infos, aliases = _tensors(named, ranges, file, text)
    return StateDict(infos, aliases, unwrapped)


def open_zip(handle: BinaryIO, path: str) -> tuple[Any, dict[str, tuple[int, int]]]:
    try:
        with zipfile.ZipFile(handle) as archive:
            members = archive.infolist()
            pickles = [member for member in members if member.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > PICKLE_CAP:
                raise errors.PickleFormatError(
                    "no state dict in this archive", file=path, expected="one data.pkl",
                    got=", ".join(member.filename[:80] for member in members[:8]) or "nothing",
                )  # fmt: skip
            require_plain(members, path)
            prefix = pickles[0].filename[: -len("data.pkl")]
            root = PickleReader(path).load(io.BytesIO(archive.read(pickles[0])))
            ranges = {}
            for member in members:
                if member.filename.startswith(prefix + "data/"):
                    ranges[member.filename[len(prefix) + 5 :]] = (
                        _member_offset(handle, member, path),
                        member.file_size,
                    )
            byteorder = prefix + "byteorder"
            if byteorder in archive.namelist() and (
                archive.getinfo(byteorder).file_size > len(b"little") or archive.read(byteorder) != b"little"
            ):
                raise errors.PickleFormatError("the weights are big-endian", file=path, expected="little-endian")
            return root, ranges
    except errors.StockpotError:  # some are ValueErrors too
        raise
    except ARCHIVE_ERRORS as error:
        raise errors.PickleFormatError(
            f"a damaged archive ({error})", file=path, remedy="copy or download it again"
        ) from None


def require_plain(members: Sequence[zipfile.ZipInfo], path: str) -> None:
    """Members as torch writes them: each name once, neither compressed (a small one might grow) nor encrypted."""
    seen = set()
    for member in members:
        if member.filename in seen:
            raise errors.PickleFormatError("two members of one name", file=path, tensor=member.filename[:80])
        seen.add(member.filename)
        if member.compress_type != zipfile.ZIP_STORED:
            raise errors.PickleFormatError("a compressed member", file=path, tensor=member.filename[:80])
        if member.flag_bits & 1:
            raise errors.PickleFormatError("an encrypted member", file=path, tensor=member.filename[:80])


def _member_offset(handle: BinaryIO, member: zipfile.ZipInfo, path: str) -> int:
    """Start of a member's bytes: after its local header (30 bytes, then name and extra field)."""
    handle.seek(member.header_offset)
    name = stored_name(member)
    local = handle.read(LOCAL_HEADER_BYTES + len(name))
    if len(local) < LOCAL_HEADER_BYTES or local[:4] != b"PK\x03\x04":
        raise errors.PickleFormatError("a damaged archive", file=path, tensor=member.filename)
    name_bytes, extra_bytes = struct.unpack("<HH", local[26:LOCAL_HEADER_BYTES])
    if name_bytes != len(name) or local[LOCAL_HEADER_BYTES:] != name:
        raise errors.PickleFormatError("a member that has two names", file=path, tensor=member.filename[:80])
    return int(member.header_offset + LOCAL_HEADER_BYTES + name_bytes + extra_bytes)


def stored_name(member: zipfile.ZipInfo) -> bytes:
    """A member's name as the archive's list holds it."""
    return member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437")


def _open_legacy(handle: BinaryIO, path: str) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Magic, protocol, system, object, storage keys (a pickle each), then per key its element count and its bytes."""
    end = handle.seek(0, io.SEEK_END)
    handle.seek(0)
    reader = PickleReader(path)
    if reader.load(handle) != LEGACY_MAGIC:
        raise errors.PickleFormatError("not a file of torch.save", file=path)
    reader.load(handle)
    system = reader.load(handle)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise errors.PickleFormatError("the weights are big-endian", file=path, expected="little-endian")
    root = reader.load(handle)
    ranges = {}
    keys = reader.load(handle)
    for key in keys if isinstance(keys, list) else []:
        stated = handle.read(8)
        dtype = reader.storages.get(str(key)) if _is_key(key) else None
        if len(stated) < 8 or dtype is None:
            raise errors.TruncatedFileError("the file ends before its storages do", file=path)
        size = struct.unpack("<q", stated)[0] * _dtypes.itemsize(dtype)
        if size < 0:
            raise errors.PickleFormatError("a storage of negative size", file=path)
        ranges[str(key)] = (handle.tell(), size)
        if handle.tell() + size > end:
            raise errors.TruncatedFileError(
                "the file ends before its storages do", file=path, expected=f"{handle.tell() + size} bytes", got=end
            )
        handle.seek(size, io.SEEK_CUR)
    return root, ranges


def unwrap(root: Any, path: str, leaf: type[Leaf]) -> tuple[dict[str, Leaf], tuple[str, ...]]:
    """The flat name -> tensor map, after wrappers and prefixes; says which were taken off."""
    said: list[str] = []
    for _ in range(2):
        wrapper = _wrapper(root, leaf) if isinstance(root, dict) else None
        if wrapper is None:
            break
        others = [str(key)[:80] for key in root if key != wrapper and _holds(root[key], leaf)]
        said += [f"{key!r}, another map of tensors, left out" for key in others]
        root = root[wrapper]
        said.append(f"{wrapper!r} taken off")
    found = {k: v for k, v in root.items() if isinstance(v, leaf)} if isinstance(root, dict) else {}
    if not found or not all(isinstance(name, str) for name in found):
        raise errors.PickleFormatError(
            "no state dict in this file",
            file=path,
            expected=f"a map of names to tensors, or one under {', '.join(WRAPPERS)}",
            got=type(root).__name__,
        )
    beside = [str(key)[:80] for key in root if _holds(root[key], leaf)]
    said += [f"{key!r}, a map of tensors beside the others, left out" for key in beside]
    for prefix in _prefixes(found):
        found = {name[len(prefix) :]: value for name, value in found.items()}
        said.append(f"{prefix!r} taken off")
    return found, tuple(said)


def _wrapper(root: Mapping[Any, Any], leaf: type[Leaf]) -> str | None:
    """The key under which the weights lie: a usual one, else the only one of a model's weights where no tensor is."""
    known = next((key for key in WRAPPERS if _holds(root.get(key), leaf)), None)
    if known is not None or any(isinstance(value, leaf) for value in root.values()):
        return known
    holding = [key for key, value in root.items() if isinstance(key, str) and _holds(value, leaf)]
    models = [key for key in holding if not any(word in key.lower() for word in _NO_MODEL)]
    return models[0] if len(models) == 1 else None


def _holds(value: object, leaf: type[Leaf]) -> bool:
    """Whether it is a map with tensors in it, or in a map in it (a wrapper in a wrapper)."""
    if not isinstance(value, dict):
        return False
    inner = list(value.values())
    inner += [one for part in inner if isinstance(part, dict) for one in part.values()]
    return any(isinstance(one, leaf) for one in inner)


def _prefixes(names: Mapping[str, object]) -> Iterator[str]:
    """Prefixes that every name carries, outermost first."""
    rest = list(names)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) and name != p for name in rest)), None):
        rest = [name[len(prefix) :] for name in rest]
        yield prefix


def _dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _tensors(
    named: Mapping[str, PickledTensor], ranges: Mapping[str, tuple[int, int]], file: int, path: str
) -> tuple[tuple[TensorInfo, ...], dict[str, str]]:
    """Byte ranges of the tensors, in file order, and the aliases: later name -> first name of the same bytes."""
    first: dict[tuple[object, ...], str] = {}
    infos: list[TensorInfo] = []
    aliases: dict[str, str] = {}
    for name, tensor in named.items():
        require_name(name, path)
        place = (tensor.storage.key, tensor.dtype, tensor.offset, tensor.shape, tensor.strides)
        if _dtypes.count(tensor.shape) and place in first:
            aliases[name] = first[place]
            continue
        first[place] = name
        infos.append(_info(name, tensor, ranges, file, path))
    return tuple(sorted(infos, key=lambda info: info.offset)), aliases


def _info(name: str, tensor: PickledTensor, ranges: Mapping[str, tuple[int, int]], file: int, path: str) -> TensorInfo:
    item = _dtypes.itemsize(tensor.dtype)
    elements = _dtypes.count(tensor.shape)
    if _dtypes.count([size for size in tensor.shape if size]) > _dtypes.MAX_ELEMENTS or len(tensor.shape) > RANK_CAP:
        raise errors.BadShapeError("the shape's count is absurd", tensor=name, file=path, got=str(tensor.shape)[:80])
    if elements == 0:
        return TensorInfo(name, tensor.dtype, tensor.shape, file, 0, 0)
    if tensor.storage.key not in ranges:
        raise errors.PickleFormatError("a storage is missing", tensor=name, file=path)
    begin, size = ranges[tensor.storage.key]
    extent = tensor.extent
    if (tensor.offset + extent) * item > size:
        raise errors.OffsetError(
            "the tensor lies outside its storage", tensor=name, file=path,
            expected=f"at most {size} bytes", got=(tensor.offset + extent) * item,
        )  # fmt: skip
    return TensorInfo(
        name,
        tensor.dtype,
        tensor.shape,
        file,
        begin + tensor.offset * item,
        extent * item,
        None if tensor.is_dense else tensor.strides,
    )
