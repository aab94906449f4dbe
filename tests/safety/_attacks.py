"""Attacks on readers of checkpoints that were published against one tool or another, as files that hold them."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from tests.checkpoint._corpus import GOOD, TENSOR, entry, file_bytes, legacy_file, zip_file
from tests.cli._kitchen import Kitchen, sharded, write_index

Place = Callable[[Kitchen], Sequence[object]]
"""Puts an attack in its place; returns the command line of its victim."""


@dataclass(frozen=True)
class Attack:
    """How it is placed, the kind of its refusal, and what the first line says."""

    place: Place
    kind: str
    says: Sequence[str] = field(default=())


def weights(content: bytes, name: str = "pytorch_model.bin") -> Place:
    """Bytes in place of a model's weights."""

    def place(kitchen: Kitchen) -> Sequence[object]:
        (kitchen.a / "model.safetensors").unlink()
        (kitchen.a / name).write_bytes(content)
        return kitchen.stock()

    return place


def pickled(content: bytes, kind: str, *says: str) -> Attack:
    """A pickle, or what is called one."""
    return Attack(weights(content), kind, ("a/pytorch_model.bin", *says))


def header(content: bytes, kind: str, *says: str) -> Attack:
    """A safetensors file, or what is called one."""
    return Attack(weights(content, "model.safetensors"), kind, ("a/model.safetensors", *says))


def call(name: str, argument: bytes = b"S'touch mark'\n") -> bytes:
    """A pickle that calls a global."""
    module, _, attribute = name.rpartition(".")
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n(" + argument + b"tR."


def stack_call(module: str, name: str) -> bytes:
    """The same with a name put together on the stack, where dots reach into objects."""
    parts = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name))
    return b"\x80\x04" + parts + b"\x93\x8c\x0atouch mark\x85R."


CALLS = (
    *("os.system", "posix.system", "nt.system", "builtins.exec", "builtins.compile", "builtins.open", "subprocess.run"),
    *("pty.spawn", "runpy.run_path", "code.interact", "timeit.timeit", "cProfile.run", "pydoc.pipepager", "pip.main"),
    *(
        "webbrowser.open",
        "ctypes.CDLL",
        "importlib.import_module",
        "linecache.getlines",
        "shutil.rmtree",
        "bdb.Bdb.run",
    ),
    *(
        "asyncio.unix_events._UnixSubprocessTransport._start",
        "multiprocessing.util.spawnv_passfds",
        "operator.attrgetter",
    ),
    *("idlelib.pyshell.ModifiedInterpreter.runcode", "logging.config.fileConfig", "ssl.get_server_certificate"),
    *(
        "types.FunctionType",
        "marshal.loads",
        "pickle.loads",
        "_pickle.loads",
        "copyreg._reconstructor",
        "codecs.decode",
    ),
    *("numpy.testing._private.utils.runstring", "numpy.f2py.crackfortran.getlincoef", "numpy.load", "numpy.memmap"),
    *("torch.load", "torch.hub.load", "torch.jit.load", "torch.utils.collect_env.run", "torch.ops.load_library"),
    *(
        "torch.utils._config_module.load_config",
        "torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression",
    ),
    *("torch.utils.bottleneck.__main__.run_cprofile", "torch.distributed.rpc.internal._run_function"),
    *(
        "torch._dynamo.guards.GuardBuilder.get",
        "torch.package.PackageImporter",
        "torch._inductor.codecache.compile_file",
    ),
    *("joblib.numpy_pickle.load", "dill._dill._create_function", "cloudpickle.cloudpickle._make_function"),
    *(
        "transformers.models.auto.auto_factory.getattribute_from_module",
        "hydra.utils.instantiate",
        "omegaconf.OmegaConf",
    ),
    *("tensorflow.keras.models.load_model", "pandas.read_pickle", "sklearn.utils._joblib.load", "keras.layers.Lambda"),
    *("__torch__.Model", "__main__.Model", "stockpot.merge"),
)
"""Globals that published attacks and bypasses of scanners call."""

SUBTLE: dict[str, tuple[bytes, str]] = {
    "an attribute of print": (stack_call("builtins", "print.__class__.__base__.__subclasses__"), "print.__class__"),
    "builtins by way of numpy": (stack_call("numpy", "__builtins__"), "numpy.__builtins__"),
    "a name with a line end": (stack_call("os\n", "system"), "os\\n.system"),
    "an allowed name in another module": (stack_call("collections", "OrderedDict.__init__.__globals__"), "__globals__"),
    "an allowed module's other name": (call("torch._utils._import_dotted_name"), "torch._utils._import_dotted_name"),
    "state set on a known class": (
        b"ctorch._utils\n_rebuild_tensor_v2\n}S'__code__'\ncbuiltins\nexec\nsb.", "builtins.exec"
    ),
    "code after the tensors": (b"(dS'w'\n" + TENSOR + b"s0cos\nsystem\n(S'touch mark'\ntR.", "os.system"),
    "code that breaks the stream after it": (b"cos\nsystem\n(S'touch mark'\ntRX\xff\xff\xff\xff", "os.system"),
    "code in hooks of a tensor": (b"(dS'w'\n" + TENSOR[:-3] + b"cos\nsystem\n(S'touch mark'\ntRtRs.", "os.system"),
    "code under another protocol's header": (b"\x80\x05\x95\x20\0\0\0\0\0\0\0" + call("os.system"), "os.system"),
}  # fmt: skip


def archive(members: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive; a name may stand twice."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for name, content in members:
            made.NameToInfo.pop(name, None)
            made.writestr(zipfile.ZipInfo(name), content, compression)
    return stream.getvalue()


def _flagged(content: bytes, bit: int) -> bytes:
    """An archive whose members all carry a flag, in the directory and before them."""
    for magic, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        parts = content.split(magic)
        flags = bytes([bit])
        content = magic.join([parts[0], *(p[: place - 4] + flags + p[place - 3 :] for p in parts[1:])])
    return content


def _tar(name: str, content: bytes = b"x") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        made.addfile(info, io.BytesIO(content))
    return stream.getvalue()


_STORED = [("m/data.pkl", GOOD), ("m/byteorder", b"little"), ("m/data/0", bytes(16))]
ARCHIVES: dict[str, tuple[bytes, Sequence[str]]] = {
    "a name twice": (archive([*_STORED, ("m/data/0", b"\xff" * 16)]), ("two members of one name", "m/data/0")),
    "two pickles of one name": (archive([*_STORED, ("m/data.pkl", call("os.system"))]), ("no state dict",)),
    "two pickles": (archive([*_STORED, ("n/data.pkl", call("os.system"))]), ("no state dict", "one data.pkl")),
    "another name before the bytes": (
        zip_file(GOOD).replace(b"archive/data/0", b"archive/data/1", 1), ("a member that has two names", "data/0")
    ),
    "another name before the pickle": (
        zip_file(GOOD).replace(b"archive/data.pkl", b"archive/data.pk_", 1), ("damaged",)
    ),
    "a bomb": (
        archive([("m/data.pkl", bytes(200_000_000)), *_STORED[1:]], zipfile.ZIP_DEFLATED), ("a compressed member",)
    ),
    "encrypted": (_flagged(zip_file(GOOD), 1), ("an encrypted member",)),
    "a Keras model": (
        archive([("config.json", b'{"class_name": "Lambda"}'), ("model.weights.h5", b"x")]), ("config.json",)
    ),
    "numpy arrays with pickles": (archive([("arr_0.npy", b"\x93NUMPY" + call("os.system"))]), ("arr_0.npy",)),
    "a package with code": (archive([("p/.data/version", b"6"), ("p/m.py", b"import os")]), ("p/m.py",)),
}  # fmt: skip

OTHER_KINDS: dict[str, tuple[bytes, str]] = {
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(100), "GGUF"),
    "Keras of old": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "a tar of torch 0.1, or .nemo": (_tar("../../mark"), "a tar archive"),
    "7z, which scanners do not open": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "a 7z archive"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(100), "a gzip file"),
    "a program": (b"\x7fELF" + bytes(100), "a program"),
    "a numpy array of objects": (b"\x93NUMPY\x01\0" + bytes(100), "a numpy array"),
    "a script": (b"#!/bin/sh\ntouch mark\n", "a script"),
    "a page": (b"<!DOCTYPE html><html>404</html>", "HTML"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git LFS"),
}

_GOOD_FILE = file_bytes(b'{"w":' + entry() + b"}", bytes(8))
HEADERS: dict[str, Attack] = {
    "a zip archive behind it": header(_GOOD_FILE + zip_file(call("os.system")), "hole", "after the last tensor"),
    "a zip archive before it": header(zip_file(call("os.system")) + _GOOD_FILE, "header_syntax", "a zip archive"),
    "a pickle called safetensors": header(b"\x80\x04" + call("os.system"), "header_length", "absurd"),
    "a tensor hidden under another's name": header(
        file_bytes(b'{"w":' + entry() + b',"\\u0077":' + entry() + b"}", bytes(8)), "duplicate_name", "tensor w"
    ),
    "a shape that overflows": header(
        file_bytes(b'{"w":' + entry(b"[4294967296,4294967297]") + b"}", bytes(8)), "bad_shape", "tensor w"
    ),
    "numbers that read as others": header(
        file_bytes(b'{"w":' + entry(offsets=b"[0,8.0]") + b"}", bytes(8)), "offset", "tensor w"
    ),
    "a name without end": header(
        file_bytes(b'{"' + b"a" * 5000 + b'":' + entry() + b"}", bytes(8)), "header_syntax", "absurdly long"
    ),
    "metadata in metadata": header(file_bytes(b'{"__metadata__":{"a":{}}}'), "header_syntax", "__metadata__"),
    "a bomb of brackets": header(file_bytes(b'{"__metadata__":' + b"[" * 200_000), "header_syntax", "not JSON"),
}
for _case, (_content, _named) in OTHER_KINDS.items():
    HEADERS[f"{_case}, called safetensors"] = header(_content, "header_syntax", "not what its name says", _named)


def index_entry(shard: str) -> Place:
    """An index that names this in place of a shard."""

    def place(kitchen: Kitchen) -> Sequence[object]:
        folder, weight_map = sharded(kitchen)
        (folder / "side.bin").write_bytes(zip_file(call("os.system")))
        write_index(folder, {**weight_map, next(iter(weight_map)): shard})
        return kitchen.stock()

    return place


def _device(kitchen: Kitchen) -> Sequence[object]:
    folder, weight_map = sharded(kitchen)
    (folder / "zero.safetensors").symlink_to("/dev/zero")
    write_index(folder, {**weight_map, next(iter(weight_map)): "zero.safetensors"})
    return kitchen.stock()


def _pipe(kitchen: Kitchen) -> Sequence[object]:
    folder, weight_map = sharded(kitchen)
    os.mkfifo(folder / "pipe.safetensors")
    write_index(folder, {**weight_map, next(iter(weight_map)): "pipe.safetensors"})
    return kitchen.stock()


def _side_folder(kitchen: Kitchen) -> Sequence[object]:
    (kitchen.a / "etc").symlink_to("/etc")
    return kitchen.stock()


def manifest(content: object) -> Place:
    """What names the parts of a pipeline."""

    def place(kitchen: Kitchen) -> Sequence[object]:
        (kitchen.a / "modules.json").write_text(json.dumps(content))
        return kitchen.stock()

    return place


FOLDERS: dict[str, Attack] = {
    "an index that leaves": Attack(index_entry("../b/model.safetensors"), "shard_index", ("outside its folder",)),
    "an index of the system": Attack(index_entry("/etc/passwd"), "shard_index", ("outside its folder",)),
    "an index that leaves, as Windows writes it": Attack(index_entry("..\\b"), "shard_index", ("outside its folder",)),
    "an index of a pickle": Attack(index_entry("side.bin"), "unsafe_pickle", ("os.system", "side.bin")),
    "an index of itself": Attack(index_entry("model.safetensors.index.json"), "checkpoint", ("not a checkpoint",)),
    "an index of a configuration": Attack(
        index_entry("config.json"), "checkpoint", ("config.json", "not a checkpoint")
    ),
    "a device": Attack(_device, "checkpoint", ("not a regular file", "zero.safetensors")),
    "a pipe": Attack(_pipe, "checkpoint", ("not a regular file", "pipe.safetensors")),
    "a symlinked folder": Attack(_side_folder, "checkpoint", ("a symlinked folder", "a/etc")),
    "a part that leaves": Attack(manifest([{"path": "../b"}]), "shard_index", ("a part outside its checkpoint",)),
    "a part of the system": Attack(manifest([{"path": "/etc"}]), "shard_index", ("a part outside its checkpoint",)),
}  # fmt: skip


def adapter(**stated: object) -> Place:
    """An adapter on the base, with such a configuration."""

    def place(kitchen: Kitchen) -> Sequence[object]:
        from safetensors.torch import save_file

        folder = kitchen.root / "adapter"
        folder.mkdir()
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["layers.0"], **stated}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        name = "base_model.model.layers.0"
        save_file(
            {f"{name}.lora_A.weight": torch.ones(2, 3), f"{name}.lora_B.weight": torch.ones(4, 2)},
            folder / "adapter_model.safetensors",
        )
        return ["merge", "--method", "linear", f"{kitchen.base}+{folder}", kitchen.b, "--out", kitchen.out]

    return place


def recipe(text: str) -> Place:
    """A recipe of one line more."""

    def place(kitchen: Kitchen) -> Sequence[object]:
        head = (
            "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n"
        )
        (kitchen.root / "recipe.yaml").write_text(head + text if not text.startswith("merge_method") else text)
        return ["merge", "recipe.yaml", "--out", kitchen.out]

    return place


def _forever(option: str, pattern: str) -> Attack:
    return Attack(recipe(f"policies: {{{option}: ['{pattern}']}}"), "parameter", (f"--{option}", "forever"))


def _no_path(model: str, says: str) -> Attack:
    """A model whose name would mean something to a shell, or to another reader."""
    text = f"merge_method: linear\nmodels: [{{model: '{model}', parameters: {{weight: 1}}}}]"
    return Attack(recipe(text), "not_found", (says,))


TEXTS: dict[str, Attack] = {
    "a pattern of ranks that never ends": Attack(
        adapter(rank_pattern={"(.*)*x": 2}), "adapter", ("a pattern of ranks", "forever", "(.*)*x")
    ),
    "an adapter that brings code": Attack(adapter(corda_config=1, custom_code="m.py"), "adapter", ("custom_code",)),
    "an adapter of another kind": Attack(adapter(peft_type="BONE"), "adapter", ("another kind", "BONE")),
    "--only that never ends": _forever("only", "(a+)+$"),
    "--exclude that never ends": _forever("exclude", "([a-z.0-9]+)*!"),
    "--rename that never ends": _forever("rename", "(.*)(.*)(.*)(.*)(.*)(.*)!=x"),
    "a number that overflows": Attack(recipe("seed: " + "1:" * 400 + "1.5"), "recipe", ("not plain YAML",)),
    "code in YAML": Attack(
        recipe("seed: !!python/object/apply:os.system ['touch mark']"), "recipe", ("not plain YAML",)
    ),
    "a date that is none": Attack(recipe("seed: !!timestamp x"), "recipe", ("not plain YAML",)),
    "a number that is none": Attack(recipe("seed: !!int ''"), "recipe", ("not plain YAML",)),
    "a truth that is none": Attack(recipe("seed: !!bool x"), "recipe", ("not plain YAML",)),
    "a variable of the environment": _no_path("$HOME", "$HOME"),
    "an interpolation": _no_path("${oc.env:HOME}", "oc.env"),
    "a command": _no_path("$(touch mark)", "touch"),
    "an address": _no_path("http://localhost/x", "http"),
    "a file to include": Attack(recipe("seed: !include /etc/passwd"), "recipe", ("not plain YAML",)),
}  # fmt: skip

ATTACKS: Mapping[str, Attack] = {
    **{f"a call of {name}": pickled(zip_file(call(name)), "unsafe_pickle", name) for name in CALLS},
    **{f"bare: {case}": pickled(content, "unsafe_pickle", named) for case, (content, named) in SUBTLE.items()},
    **{
        f"old: {case}": pickled(legacy_file(content), "unsafe_pickle", named)
        for case, (content, named) in SUBTLE.items()
    },
    **{f"an archive: {case}": pickled(content, "pickle_format", *says) for case, (content, says) in ARCHIVES.items()},
    **{
        f"{case}, called a pickle": pickled(content, "pickle_format", "not what its name says", named)
        for case, (content, named) in OTHER_KINDS.items()
    },
    **HEADERS,
    **FOLDERS,
    **TEXTS,
}
"""Every attack by a name that says what it tries."""
