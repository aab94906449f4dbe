"""State dicts saved by ``torch.save``, read without running anything and without loading the weights.

The pickle inside is interpreted by an unpickler that knows a short list of globals and answers each with an inert
stand-in of ours, so that no imported code is ever called. What comes out says, for each tensor, where its bytes lie
in the file; they are then read by range like those of any other format. Both forms of file are known: the zip
archive (torch >= 1.6, stored uncompressed) and the older sequence of pickles followed by raw storages.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from stockpot import errors
from stockpot.checkpoint import _dtypes
from stockpot.checkpoint._header import TensorInfo

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
PICKLE_CAP = 1 << 30
"""Largest pickle that is read into memory, in bytes (weights are not part of it)."""
WRAPPERS = ("state_dict", "model", "state_dict_ema", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")

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
_OPAQUE = {
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
class _Tensor:
    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Opaque(dict[Any, Any]):
    """Stands for an object that we do not need: takes any arguments, keeps none, calls nothing."""

    __slots__ = ()

    def __init__(self, *args: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Forget it."""

    def __setitem__(self, key: object, value: object) -> None:
        """Forget it."""

    def append(self, value: object) -> None:
        """Forget it (APPENDS opcode)."""

    def extend(self, values: object) -> None:
        """Forget them."""

    def add(self, value: object) -> None:
        """Forget it (ADDITEMS opcode)."""

    def __hash__(self) -> int:  # type: ignore[override]  # it may stand as a key of a dict
        return id(self)


class _Rebuild:
    """Stands for ``torch._utils._rebuild_tensor_v2`` and its kin."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any) -> object:
        try:
            return _REBUILDERS[self.name](*args)
        except (TypeError, ValueError, IndexError) as error:
            raise pickle.UnpicklingError(f"{self.name} got arguments it cannot take ({error})") from None


@dataclass(frozen=True, slots=True)
class _Dtype:
    code: str


def _naturals(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(type(v) is int and v >= 0 for v in values):
        raise ValueError("sizes must be numbers >= 0")
    return values


def _rebuild_tensor(storage: object, offset: object, shape: object, strides: object, *_: object) -> _Tensor:
    if not isinstance(storage, _Storage) or type(offset) is not int or offset < 0:
        raise ValueError("no storage")
    sizes, steps = _naturals(shape), _naturals(strides)
    if len(sizes) != len(steps):
        raise ValueError("shape and strides differ in length")
    return _Tensor(storage, storage.dtype, storage.begin + offset, sizes, steps)


def _rebuild_tensor_v3(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    grad: object,
    hooks: object,
    dtype: object,
    *_: object,
) -> _Tensor:
    plain = _rebuild_tensor(storage, offset, shape, strides)
    if not isinstance(dtype, _Dtype):
        raise ValueError("no dtype")
    return _Tensor(plain.storage, dtype.code, plain.offset, plain.shape, plain.strides)


def _rebuild_parameter(data: object, *_: object) -> object:
    return data


def _rebuild_from_type(function: object, kind: object, args: object, *_: object) -> object:
    if not isinstance(function, _Rebuild) or not isinstance(args, tuple):
        raise ValueError("not a tensor")
    return function(*args)


_REBUILDERS: Mapping[str, Callable[..., object]] = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_tensor_v3": _rebuild_tensor_v3,
    "_rebuild_parameter": _rebuild_parameter,
    "_rebuild_parameter_with_state": _rebuild_parameter,
    "_rebuild_from_type_v2": _rebuild_from_type,
}


class _Unpickler(pickle.Unpickler):
    """Knows the globals of a state dict; refuses every other, by name, before anything is called."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        super().__init__(file, encoding="utf-8")
        self.path = path
        # Classes of this unpickler alone: a hostile BUILD can change no class that anyone else uses.
        self._ordered_dict = type("OrderedDict", (dict,), {})
        self._opaque = type("Opaque", (_Opaque,), {})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return self._ordered_dict
        if module in ("torch._utils", "torch._tensor") and name in _REBUILDERS:
            return _Rebuild(name)
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _Dtype(_STORAGE_DTYPES[name])
        if module in ("torch.nn.parameter", "torch.nn") and name == "Parameter":
            return self._opaque
        if module == "torch" and name in _dtypes.CODES:
            return _Dtype(_dtypes.CODES[name])
        if (module, name) in _OPAQUE:
            return self._opaque
        raise errors.UnsafePickleError(
            f"the pickle asks for {module}.{name}, which is not part of a state dict; nothing of it was run",
            file=self.path,
            remedy="load it where you trust it and save the state dict alone, best as safetensors",
        )

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _Dtype):
            raise pickle.UnpicklingError("an unknown persistent id")
        begin = 0
        if len(pid) > 5 and isinstance(pid[5], tuple) and type(pid[5][1]) is int:
            begin = pid[5][1]
        return _Storage(str(pid[2]), pid[1].code, begin)


def _load(file: BinaryIO, path: str) -> Any:
    try:
        return _Unpickler(file, path).load()
    except errors.StockpotError:
        raise
    except Exception as error:  # a hostile pickle can raise nearly anything from the opcode machine
        raise errors.PickleFormatError(
            f"the pickle cannot be read ({type(error).__name__}: {error})",
            file=path,
            remedy="copy or download it again",
        ) from None


@dataclass(frozen=True, slots=True)
class StateDict:
    """A pickled state dict: its tensors, which names share one storage, and what was unwrapped on the way."""

    tensors: tuple[TensorInfo, ...]
    aliases: Mapping[str, str]
    unwrapped: tuple[str, ...]


def read_state_dict(path: Path, file: int = 0) -> StateDict:
    """Open a ``.bin/.pt/.pth/.ckpt`` file. Cost: its pickle, not its weights."""
    text = str(path)
    with path.open("rb") as handle:
        magic = handle.read(4)
        handle.seek(0)
        root, ranges = _open_zip(handle, text) if magic == b"PK\x03\x04" else _open_legacy(handle, text)
    named, unwrapped = _unwrap(root, text)
    infos, aliases = _tensors(named, ranges, file, text)
    return StateDict(infos, aliases, unwrapped)


def _open_zip(handle: BinaryIO, path: str) -> tuple[Any, dict[str, tuple[int, int]]]:
    try:
        with zipfile.ZipFile(handle) as archive:
            members = archive.infolist()
            pickles = [member for member in members if member.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > PICKLE_CAP:
                raise errors.PickleFormatError("no state dict in this archive", file=path, expected="one data.pkl")
            prefix = pickles[0].filename[: -len("data.pkl")]
            root = _load(io.BytesIO(archive.read(pickles[0])), path)
            ranges = {}
            for member in members:
                if member.filename.startswith(prefix + "data/"):
                    if member.compress_type != zipfile.ZIP_STORED:
                        raise errors.PickleFormatError("a compressed storage", file=path, tensor=member.filename)
                    ranges[member.filename[len(prefix) + 5 :]] = (
                        _member_offset(handle, member, path),
                        member.file_size,
                    )
            byteorder = prefix + "byteorder"
            if byteorder in archive.namelist() and archive.read(byteorder) != b"little":
                raise errors.PickleFormatError("the weights are big-endian", file=path, expected="little-endian")
            return root, ranges
    except (zipfile.BadZipFile, NotImplementedError, OSError, RuntimeError, EOFError) as error:
        if isinstance(error, errors.StockpotError):
            raise
        raise errors.PickleFormatError(
            f"a damaged archive ({error})", file=path, remedy="copy or download it again"
        ) from None


def _member_offset(handle: BinaryIO, member: zipfile.ZipInfo, path: str) -> int:
    """Start of a member's bytes: after its local header (30 bytes, then name and extra field)."""
    handle.seek(member.header_offset)
    local = handle.read(30)
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise errors.PickleFormatError("a damaged archive", file=path, tensor=member.filename)
    name_bytes, extra_bytes = struct.unpack("<HH", local[26:30])
    return int(member.header_offset + 30 + name_bytes + extra_bytes)


def _open_legacy(handle: BinaryIO, path: str) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Magic, protocol, system, object, storage keys (a pickle each), then per key its element count and its bytes."""
    if _load(handle, path) != LEGACY_MAGIC:
        raise errors.PickleFormatError("not a file of torch.save", file=path)
    _load(handle, path)
    system = _load(handle, path)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise errors.PickleFormatError("the weights are big-endian", file=path, expected="little-endian")
    unpickler = _LegacyUnpickler(handle, path)
    try:
        root = unpickler.load()
    except errors.StockpotError:
        raise
    except Exception as error:
        raise errors.PickleFormatError(f"the pickle cannot be read ({error})", file=path) from None
    ranges = {}
    keys = _load(handle, path)
    for key in keys if isinstance(keys, list) else []:
        count = handle.read(8)
        dtype = unpickler.storages.get(str(key))
        if len(count) < 8 or dtype is None:
            raise errors.TruncatedFileError("the file ends before its storages do", file=path)
        size = struct.unpack("<q", count)[0] * _dtypes.itemsize(dtype)
        if size < 0:
            raise errors.PickleFormatError("a storage of negative size", file=path)
        ranges[str(key)] = (handle.tell(), size)
        handle.seek(size, io.SEEK_CUR)
    return root, ranges


class _LegacyUnpickler(_Unpickler):
    """Remembers the dtype of each storage, since the file states only element counts."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        super().__init__(file, path)
        self.storages: dict[str, str] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        storage = super().persistent_load(pid)
        self.storages[storage.key] = storage.dtype
        return storage


def _unwrap(root: Any, path: str) -> tuple[dict[str, _Tensor], tuple[str, ...]]:
    """The flat name -> tensor map, after the common wrappers and prefixes; says which were taken off."""
    said: list[str] = []
    for _ in range(2):
        if not isinstance(root, dict):
            break
        if any(isinstance(value, _Tensor) for value in root.values()):
            break
        wrapper = next((key for key in WRAPPERS if isinstance(root.get(key), dict)), None)
        if wrapper is None:
            break
        root = root[wrapper]
        said.append(wrapper)
    found = {k: v for k, v in root.items() if isinstance(v, _Tensor)} if isinstance(root, dict) else {}
    if not found or not all(isinstance(name, str) for name in found):
        raise errors.PickleFormatError(
            "no state dict in this file",
            file=path,
            expected=f"a map of names to tensors, or one under {', '.join(WRAPPERS)}",
            got=type(root).__name__,
        )
    for prefix in _prefixes(found):
        found = {name[len(prefix) :]: value for name, value in found.items()}
        said.append(prefix)
    return found, tuple(said)


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


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    if 0 in shape:
        return True
    dense = _dense_strides(shape)
    return all(size == 1 or got == want for size, got, want in zip(shape, strides, dense, strict=True))


def _tensors(
    named: Mapping[str, _Tensor], ranges: Mapping[str, tuple[int, int]], file: int, path: str
) -> tuple[tuple[TensorInfo, ...], dict[str, str]]:
    """Byte ranges of the tensors, in file order, and the aliases: later name -> first name of the same bytes."""
    first: dict[tuple[object, ...], str] = {}
    infos: list[TensorInfo] = []
    aliases: dict[str, str] = {}
    for name, tensor in named.items():
        place = (tensor.storage.key, tensor.dtype, tensor.offset, tensor.shape, tensor.strides)
        if _dtypes.count(tensor.shape) and place in first:
            aliases[name] = first[place]
            continue
        first[place] = name
        infos.append(_info(name, tensor, ranges, file, path))
    return tuple(sorted(infos, key=lambda info: info.offset)), aliases


def _info(name: str, tensor: _Tensor, ranges: Mapping[str, tuple[int, int]], file: int, path: str) -> TensorInfo:
    item = _dtypes.itemsize(tensor.dtype)
    elements = _dtypes.count(tensor.shape)
    if elements == 0:
        return TensorInfo(name, tensor.dtype, tensor.shape, file, 0, 0)
    if elements > _dtypes.MAX_ELEMENTS or len(tensor.shape) > 64:
        raise errors.BadShapeError("the shape's count is absurd", tensor=name, file=path, got=str(tensor.shape)[:80])
    if tensor.storage.key not in ranges:
        raise errors.PickleFormatError("a storage is missing", tensor=name, file=path)
    begin, size = ranges[tensor.storage.key]
    dense = _is_dense(tensor.shape, tensor.strides)
    extent = (
        elements if dense else 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    )
    if (tensor.offset + extent) * item > size or (not dense and extent > 4 * elements):
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
        None if dense else tensor.strides,
    )
