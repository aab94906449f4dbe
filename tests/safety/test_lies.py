"""``stockpot verify`` against records that lie: each alone with its sums made right, and all of them together."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

import stockpot
from stockpot import errors
from stockpot.checkpoint import header_of, open_checkpoint, seal_header
from stockpot.checkpoint._pickle_writer import PROVENANCE_MEMBER, _fill_checksums, _frame_digest
from stockpot.engine._sums import SUMS, sums

from ._outputs import OUTPUTS, models
from .conftest import Campaign
from .test_flips import files_of, said

Change = Callable[[Any], object]


def resum(out: Path) -> None:
    """SHA256SUMS made right again, as whoever changed a file would."""
    listed = [line.split("  ")[1] for line in (out / SUMS).read_text().splitlines()]
    (out / SUMS).write_bytes(sums({name: (out / name).read_bytes() for name in listed}, {}))


def rewrite(file: Path, change: Change) -> None:
    """Change a JSON file."""
    content = json.loads(file.read_bytes())
    change(content)
    file.write_text(json.dumps(content, indent=1) + "\n")


def flip_last(file: Path) -> None:
    """The last byte's lowest bit."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


LIES: dict[str, tuple[str, str, Change]] = {
    "the recipe file": ("folder", "stockpot_recipe.yaml", lambda f: f.write_text(f.read_text() + "dtype: float16\n")),
    "no recipe at all": ("folder", "stockpot_recipe.yaml", lambda f: f.write_text("- 1\n")),
    "the recipe recorded": (
        "folder", "stockpot_recipe.yaml",
        lambda f: rewrite(f.with_name("stockpot.json"), lambda c: c["recipe"].update(dtype="float16")),
    ),
    "total_size": ("shards", "model.safetensors.index.json", lambda f: rewrite(f, lambda c: c["metadata"].clear())),
    "weight_map": ("shards", "model.safetensors.index.json", lambda f: rewrite(f, lambda c: c["weight_map"].popitem())),
    "total_size of a part": (
        "parts", "diffusion_pytorch_model.safetensors.index.json",
        lambda f: rewrite(f.parent / "unet" / f.name, lambda c: c["metadata"].update(total_size=1)),
    ),
    "dtype of the config": ("shards", "config.json", lambda f: rewrite(f, lambda c: c.update(dtype="float16"))),
    "dtype of a tensor": (
        "folder", "model.safetensors",
        lambda f: rewrite(f.with_name("stockpot.json"), lambda c: c["tensors"]["norm.weight"].update(dtype="BF16")),
    ),
    "a coefficient": (
        "folder", "stockpot.json",
        lambda f: rewrite(f, lambda c: c["groups"]["norm.weight"].update(ratio=0.5)),
    ),
    "a group": ("folder", "stockpot_geometry.safetensors", lambda f: rewrite(
        f.with_name("stockpot.json"), lambda c: c["groups"].update(more={"weights": [1.0]})
    )),
    "an inner product": ("folder", "stockpot_geometry.safetensors", flip_last),
    "inner products of rows": ("rows", "stockpot_geometry.safetensors", flip_last),
    "the inputs of the run": ("folder", "stockpot_run.json", lambda f: rewrite(f, lambda c: c["inputs"].pop())),
    "the recipe of the card": (
        "folder", "README.md", lambda f: f.write_text(f.read_text().replace("model_stock\n", "x\n"))
    ),
    "an input of the card": ("folder", "README.md", lambda f: f.write_text(f.read_text().replace("/a` |", "/c` |"))),
    "a file outside": (
        "folder", "../base/model.safetensors",
        lambda f: rewrite(
            f.parents[2] / "stockpot.json", lambda c: c["files"][0].update(name="../base/model.safetensors")
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_one_record_against_the_others(lie: str, tmp_path: Path) -> None:
    """A record that was changed and its sums made right disagrees with another; both are named."""
    kind, name, change = LIES[lie]
    out = OUTPUTS[kind](tmp_path)
    change(out / name)
    resum(out)
    assert Path(name).name in said(out), said(out)
    assert SUMS not in said(out).replace(f"not in {SUMS}", "")


GARBAGE = [
    b"", b"\0" * 99, b"{}", b"[]", b"null", b"1e999", b'"\\ud800"', b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe",
    b"{}\n" * 9, b'{"inputs": [[{}]]}', b'{"inputs": {"a": 1}}', b"stockpot", b"- {}", b"&a [*a]", b"9" * 5000,
    b'{"metadata": 3, "weight_map": {"a": "b"}}', b"0" * 64 + b"  /etc/passwd\n", b"0" * 64 + b"  ../base\n",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["shards", "parts", "adapters", "one.safetensors", "one.pt"])
def test_garbage(kind: str, tmp_path: Path, campaign: Campaign) -> None:
    """Whatever stands in a file of an output, with its sum made right: our own errors, and the file named."""
    out = OUTPUTS[kind](tmp_path)
    for number, file in enumerate(files_of(out)):
        if out.is_dir() and file.name == SUMS:
            continue
        content = file.read_bytes()
        step = campaign.times(7, 1)
        for garbage in GARBAGE[number % step :: step]:
            file.write_bytes(garbage)
            if out.is_dir():
                resum(out)
            found = said(out)
            sided = file.name in ("tokenizer.json", "model_index.json", "adapter_config.json", "config.json")
            assert file.name in found or sided, (file.name, garbage[:40], found)
        file.write_bytes(content)


@pytest.mark.parametrize("value", [None, 0, -1, 1e400, True, "", "x", [], [[]], {}, {"": None}, [{}], "\ud800", 10**30])
def test_values_of_every_kind_in_the_provenance(value: object, tmp_path: Path, campaign: Campaign) -> None:
    """Each key, at each depth, with a value of another kind: our own errors, from ``--recompute`` too."""
    out = OUTPUTS["folder"](tmp_path)
    whole = json.loads((out / "stockpot.json").read_bytes())

    def places(node: Any) -> list[tuple[Any, Any]]:
        pairs = (
            list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        )
        return [(node, key) for key, _ in pairs] + [place for _, below in pairs for place in places(below)]

    for node, key in places(whole)[:: campaign.times(12, 1)]:
        kept, node[key] = node[key], value
        (out / "stockpot.json").write_text(json.dumps(whole))
        resum(out)
        with contextlib.suppress(errors.StockpotError):
            stockpot.verify(out, recompute=1.0)
        node[key] = kept


def forge(out: Path, tensor: str) -> None:
    """Change a weight, and then everything that speaks of it, as somebody would who knows this program."""
    source = open_checkpoint(out)
    info = source.tensors[tensor]
    file = Path(source.files[info.file].path)
    content = bytearray(file.read_bytes())
    before = xxhash.xxh3_128_hexdigest(content[info.offset : info.offset + info.nbytes]).encode()
    content[info.offset + info.nbytes - 1] ^= 1
    after = xxhash.xxh3_128_hexdigest(content[info.offset : info.offset + info.nbytes]).encode()
    file.write_bytes(content)
    if out.is_dir():
        record = out / "stockpot.json"
        record.write_bytes(record.read_bytes().replace(before, after))
        resum(out)
    elif out.suffix == ".safetensors":
        header = header_of(out).replace(before, after)
        stated = header.index(b'"stockpot_seal":"') + len(b'"stockpot_seal":"')
        blank = header[:stated] + b"0" * 32 + header[stated + 32 :]
        out.write_bytes(seal_header(blank) + content[len(header) :])
    else:
        out.write_bytes(content.replace(before, after))
        sign(out)


def sign(archive: Path) -> None:
    """Checksums and seal of a ``.pt`` made right."""
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as found:
        member = next(one for one in found.infolist() if one.filename.endswith(PROVENANCE_MEMBER))
        begin = member.header_offset + 30 + len(member.filename)
        checksum = struct.pack("<I", zlib.crc32(content[begin : begin + member.file_size]))
    content[member.header_offset + 14 : member.header_offset + 18] = checksum
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 16 : entry + 20] = checksum
    archive.write_bytes(content)
    with zipfile.ZipFile(archive) as found, archive.open("r+b") as handle:
        _fill_checksums(found, handle, found.infolist()[0].filename.split("/", 1)[0])
    with archive.open("r+b") as handle:
        digest = _frame_digest(handle, str(archive))
        handle.seek(-len(digest), 2)
        handle.write(digest)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_forgery_of_everything(kind: str, tmp_path: Path) -> None:
    """Weights, digests and sums changed alike look whole; ``--recompute`` 1 finds the tensor, in every kind."""
    out = OUTPUTS[kind](tmp_path)
    assert stockpot.verify(out, recompute=1.0).problems == ()
    tensor = list(open_checkpoint(out).tensors)[-1]
    forge(out, tensor)
    assert said(out) == ""
    found = stockpot.verify(out, recompute=1.0)
    assert found.problems[0] == f"tensor {tensor}: computed anew, its bytes differ"
    assert not any(problem.startswith("tensor ") for problem in found.problems[1:])
    assert found.recomputed == found.tensors


@pytest.mark.parametrize("kind", ["folder", "parts", "adapters", "soup"])
def test_forged_small_files(kind: str, tmp_path: Path) -> None:
    """Code, words or configuration exchanged beside the weights, sums made right: ``--recompute`` 1 names the file."""
    out = OUTPUTS[kind](tmp_path)
    own = {SUMS, "stockpot_run.json", "README.md"} if kind == "soup" else {SUMS, "stockpot_run.json"}
    for file in files_of(out):
        content = file.read_bytes()
        if file.suffix == ".safetensors" or file.name in own:
            continue
        file.write_bytes(content.replace(b"a", b"\xc3\xa4", 1) + b"\n")
        resum(out)
        try:
            found = "\n".join(stockpot.verify(out, recompute=1.0).problems)
        except errors.StockpotError as error:
            found = error.line()
        assert file.name in found, (file.name, found)
        file.write_bytes(content)
        resum(out)
    (out / "modeling.py").write_text("print()")
    digest = sums({"modeling.py": b"print()"}, {})
    (out / SUMS).write_bytes(b"".join(sorted([*(out / SUMS).read_bytes().splitlines(keepends=True), digest])))
    assert said(out) == ""
    assert "modeling.py" in "\n".join(stockpot.verify(out, recompute=1.0).problems)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_sample_is_the_same_each_time(kind: str, tmp_path: Path) -> None:
    """--recompute 0.34 takes at least one group, the same in every run."""
    out = OUTPUTS[kind](tmp_path)
    first, second = (stockpot.verify(out, recompute=0.34) for _ in range(2))
    assert first == second
    assert 1 <= first.recomputed < first.tensors


def test_names_that_need_escapes(tmp_path: Path) -> None:
    """Side files with a line break, a backslash, no Unicode or a terminal's orders in their names are summed as
    ``sha256sum`` would."""
    base, one, two = models(tmp_path)
    for name in (b"a\nb.txt", b"a\\b.txt", b"\xff.txt", b"a\rb.txt", b"x\n0  y", b"\x1b]0;x\x07"):
        (one / name.decode("utf-8", "surrogateescape")).write_text("x")
    out = stockpot.merge("model_stock", base=base, models=[one, two], out=tmp_path / "out").out
    assert said(out) == ""
    assert stockpot.verify(out, recompute=1.0).problems == ()
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=out, check=True)
