"""Attacks that were published against readers of checkpoints: each is refused by name, and nothing of it is run."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
import torch
from tests.checkpoint._corpus import GOOD, zip_file
from tests.cli._kitchen import Kitchen, Program, load, numbers, snapshot

from ._attacks import ATTACKS, archive, call, weights

SECONDS = 1.0
"""Of processor time; for two runs, and the time of a machine that is busy is not counted."""


@pytest.mark.parametrize("case", ATTACKS)
def test_attack_is_refused_by_name(case: str, program: Program, kitchen: Kitchen) -> None:
    """Exit 2, a first line that names the attack, no file anywhere that was not there, at once."""
    attack = ATTACKS[case]
    arguments = attack.place(kitchen)
    began = time.process_time()
    program.refuses(*arguments, kind=attack.kind, says=attack.says)
    assert time.process_time() - began < 2 * SECONDS


def test_code_beside_the_weights_is_copied_and_never_run(program: Program, kitchen: Kitchen) -> None:
    """``auto_map`` and the code it names come along as they are; merging and proving import none of it."""
    code = "import pathlib\npathlib.Path('mark').touch()\n"
    for folder in (kitchen.a, kitchen.b):
        for name in ("modeling_x.py", "__init__.py", "conftest.py", "sitecustomize.py", "setup.py"):
            (folder / name).write_text(code)
        (folder / "config.json").write_text('{"auto_map": {"AutoModel": "modeling_x.X"}, "trust_remote_code": true}')
        (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ self.__init__.__globals__ }}"}')
        (folder / "tokenizer.json").write_text('{"added_tokens": [' * 5000)
    program.does(*kitchen.soup())
    program.does("verify", kitchen.out)
    assert (kitchen.out / "modeling_x.py").read_text() == code
    assert not list(kitchen.root.rglob("mark"))
    assert not list(kitchen.root.rglob("__pycache__"))


def test_members_that_lead_elsewhere_are_not_written(program: Program, kitchen: Kitchen) -> None:
    """An archive is never unpacked: members with the names of files elsewhere stay where they are."""
    names = ("../mark", "/tmp/stockpot-mark", "m/../../mark", "m/code/x.py", "m/constants.pkl")
    members = [("m/data.pkl", GOOD), ("m/data/0", bytes(16)), *((name, b"import os") for name in names)]
    weights(archive(members))(kitchen)
    (kitchen.b / "model.safetensors").unlink()
    (kitchen.b / "pytorch_model.bin").write_bytes(archive(members))
    before = snapshot(kitchen.root)
    program.does(*kitchen.soup())
    after = {name: content for name, content in snapshot(kitchen.root).items() if name.partition("/")[0] != "out"}
    assert after == before
    assert not Path("/tmp/stockpot-mark").exists()
    assert load(kitchen.out)["w"].shape == (4,)


NAMES = ("\x1b[2J\x1b[31mred", "a\nb", "nul\0", "\u202egpj.exe", "\x9b2J", "]0;x\x07", "\u2028", "\u200b")


@pytest.mark.parametrize("command", ["merge", "--dry-run", "geometry", "verify"])
def test_names_never_steer_the_terminal(command: str, program: Program, kitchen: Kitchen) -> None:
    """Names of tensors are anybody's: on the terminal only what can be printed of them arrives."""
    kitchen.everywhere(**{f"layers.{n}.{name}.0.x": numbers(2, seed=n) for n, name in enumerate(NAMES)})
    kitchen.everywhere(**{f"{name}.1": numbers(2, seed=9) for name in NAMES})
    if command == "geometry":
        outcome = program.does("geometry", "--base", kitchen.base, kitchen.a, kitchen.b, "--granularity", "tensor")
    else:
        more = ["--dry-run"] if command == "--dry-run" else []
        outcome = program.does(*kitchen.stock("--only", "layers", *more))
    if command == "verify":
        file = kitchen.out / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-200:] = bytes(200)
        file.write_bytes(content)
        outcome = program("verify", kitchen.out)
        assert outcome.code == 1
    for line in (outcome.out + outcome.err).split("\n"):
        assert line.isprintable(), repr(line)


def test_a_model_card_ends_where_its_author_ends(program: Program, kitchen: Kitchen) -> None:
    """What a recipe says stays inside the fence of the card, also where it holds fences."""
    hostile = "x|\n```\n# Free money\n````\n<script>"
    text = {
        "merge_method": "linear",
        "models": [{"model": name, "parameters": {"weight": 1}} for name in ("a", "b")],
        "policies": {"only": ["layers|norm|" + hostile]},
    }
    (kitchen.root / "recipe.yaml").write_text(json.dumps(text))
    program.does("merge", "recipe.yaml", "--out", "out")
    lines = (kitchen.out / "README.md").read_text("utf-8").splitlines()
    opening = next(line for line in lines if line.endswith("yaml"))
    fence = opening.removesuffix("yaml")
    inside = lines[lines.index(opening) + 1 :]
    closing = next(number for number, line in enumerate(inside) if line.strip().startswith(fence))
    assert not [line for line in inside[closing + 1 :] if line.strip()]
    assert any("Free money" in line for line in inside[:closing])
    program.does("verify", "out")


def test_names_neither_steer_a_terminal_nor_write_the_card(program: Program, kitchen: Kitchen) -> None:
    """Folders, tensors and models by hostile names: card, recipe, table and page are printable, and verify agrees."""
    hostile = "m\x1b]0;owned\x07\x9b31m\u202e\n---\n# Free money | ``x` |"
    kitchen.everywhere(**{hostile: torch.ones(4, 4)})
    moved = kitchen.a.rename(kitchen.a.parent / hostile.replace("/", ""))
    program.does("merge", "--method", "linear", moved, kitchen.b, "--out", kitchen.out)
    program.does("verify", kitchen.out)
    asked = ("geometry", "--base", kitchen.base, moved, kitchen.b)
    pages = [kitchen.root / name for name in ("g.csv", "g.html")]
    program.does(*asked, "--csv", pages[0], "--html", pages[1])
    for file in (kitchen.out / "README.md", kitchen.out / "stockpot_recipe.yaml", *pages):
        for line in file.read_text("utf-8").split("\n"):
            assert line.isprintable(), (file.name, line)
    card = (kitchen.out / "README.md").read_text("utf-8")
    assert not [line for line in card.partition("```yaml")[0].split("\n") if line.startswith("# Free")]
    assert card.count("\n---\n") == 1
    (row,) = (line for line in card.split("\n") if "Free money" in line and line.startswith("| "))
    assert row.replace("\\|", "").count("|") == 3
    assert "```" in row


def test_links_to_elsewhere_are_told(program: Program, kitchen: Kitchen) -> None:
    """A side file that is a link is copied, and named where it leads to what nobody named: not in a hub's cache, not
    into another input."""
    secret = kitchen.root / "secret"
    secret.write_text("mine")
    (kitchen.a / "vocab.txt").symlink_to(secret)
    (kitchen.base / "merges.txt").write_text("base's")
    (kitchen.a / "merges.txt").symlink_to(kitchen.base / "merges.txt")
    told = f"links to elsewhere, and are copied: vocab.txt -> {secret.resolve()}"
    for more in (["--dry-run"], []):
        warned = program.does(*kitchen.stock(*more)).err
        assert told in warned
        assert "merges.txt" not in warned
    assert (kitchen.out / "vocab.txt").read_text() == "mine"
    assert not (kitchen.out / "vocab.txt").is_symlink()


@pytest.mark.parametrize("blobs", ["its own", "a link"])
def test_links_of_a_hubs_cache_are_its_files(blobs: str, program: Program, kitchen: Kitchen) -> None:
    """``snapshots/COMMIT/vocab.txt -> ../../blobs/x`` is told only where ``blobs`` itself leads elsewhere."""
    cache, elsewhere = kitchen.root / "models--a", kitchen.root / "elsewhere"
    for place in (cache / "snapshots", elsewhere):
        place.mkdir(parents=True)
    if blobs == "a link":
        (cache / "blobs").symlink_to(elsewhere)
    else:
        (cache / "blobs").mkdir()
    (cache / "blobs" / "x").write_text("words")
    commit = kitchen.a.rename(cache / "snapshots" / "c0ffee")
    (commit / "vocab.txt").symlink_to("../../blobs/x")
    warned = program.does("merge", "--method", "linear", commit, kitchen.b, "--out", kitchen.out).err
    assert ("vocab.txt" in warned) == (blobs == "a link")


def test_packed_weights_are_refused_where_they_differ(program: Program, kitchen: Kitchen) -> None:
    """Packed integers of GPTQ and AWQ are no weights to average: refused by name."""
    kitchen.everywhere(**{"layers.0.qweight": torch.ones(4, dtype=torch.int32)})
    kitchen.change(kitchen.b, **{"layers.0.qweight": torch.zeros(4, dtype=torch.int32)})
    program.refuses(*kitchen.stock(), kind="mismatch", says=["layers.0.qweight", "differ"])


CONFIGS = {
    "deep": '{"a":' * 900 + "1" + "}" * 900,
    "deeper": '{"a":' * 100_000,
    "half a surrogate": '{"dtype": "float32", "name": "\\ud800"}',
    "a long number": '{"dtype": "float32", "n": ' + "9" * 5000 + "}",
    "UTF-16": '{"dtype": "float32"}',
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_that_break_their_readers(case: str, program: Program, kitchen: Kitchen) -> None:
    """A configuration that cannot be written again comes along as it is."""
    content = CONFIGS[case].encode("utf-16" if case == "UTF-16" else "utf-8")
    for folder in (kitchen.a, kitchen.b):
        (folder / "config.json").write_bytes(content)
    program.does(*kitchen.soup("--dtype", "bfloat16"))
    assert (kitchen.out / "config.json").read_bytes() == content


PROVENANCE: dict[str, tuple[str, str]] = {
    "leads elsewhere": ("../a/model.safetensors", "which is outside"),
    "leads to the system": ("/etc/passwd", "which is outside"),
    "is too long": ("x" * 5000, "missing"),
    "has an end": ("a\0b", "which is outside"),
    "is a folder": (".", "which is outside"),
}


@pytest.mark.parametrize("case", PROVENANCE)
def test_provenance_that_lies(case: str, program: Program, kitchen: Kitchen) -> None:
    """``verify`` reads no file outside of what it verifies, whatever its records name."""
    name, says = PROVENANCE[case]
    program.does(*kitchen.soup())
    for file in ("stockpot.json", "SHA256SUMS"):
        path = kitchen.out / file
        kept = path.read_text()
        if file == "stockpot.json":
            record = json.loads(kept)
            record["files"][0]["name"] = name
            text = json.dumps(record)
            path.write_text(text)
            (kitchen.out / "SHA256SUMS").write_text(
                (kitchen.out / "SHA256SUMS")
                .read_text()
                .replace(hashlib.sha256(kept.encode()).hexdigest(), hashlib.sha256(text.encode()).hexdigest())
            )
            program.fails("verify", kitchen.out, kind="damage", says=["damage found", says], command="verify")
        else:
            path.write_text(kept + f"{'0' * 64}  {name}\n")
            program.fails("verify", kitchen.out, kind="damage", says=["damage found"], command="verify")


def test_the_attacks_would_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch without its guard runs the first of them: the files above are what they are said to be."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    path.write_bytes(zip_file(call("os.system")))
    torch.load(path, weights_only=False)
    assert (tmp_path / "mark").exists()
