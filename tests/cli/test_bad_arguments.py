"""Arguments that do not fit: each its own message, exit 2, and nothing written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ._kitchen import Kitchen, Program, check_error, numbers

ARGUMENTS: dict[str, tuple[list[str], str, list[str]]] = {
    "option unknown": (["--granularty", "row"], "usage", ["--granularty", "--granularity"]),
    "parameter unknown": (["--set", "negativ=clamp"], "unknown_name", ["'negativ'", "model_stock", "mean negative?"]),
    "parameter of another method": (["--set", "alpha=.5"], "unknown_name", ["'alpha'", "model_stock", "negative"]),
    "parameter far from all": (["--set", "zzz=1"], "unknown_name", ["'zzz'", "known:", "negative", "norms"]),
    "choice unknown": (
        ["--set", "negative=clmp"],
        "parameter",
        ["negative", "'clmp'", "clamp|raise|allow", "mean clamp?"],
    ),
    "choice of another kind": (["--set", "negative=3"], "parameter", ["negative", "3", "clamp|raise|allow"]),
    "set without value": (["--set", "negative"], "parameter", ["--set", "KEY=VALUE", "'negative'"]),
    "set without key": (["--set", "=1"], "parameter", ["--set", "KEY=VALUE", "'=1'"]),
    "set not YAML": (["--set", "negative=[1"], "parameter", ["--set", "YAML", "negative=[1"]),
    "set with code": (["--set", "negative=!!python/object/apply:os.getcwd []"], "parameter", ["--set", "YAML"]),
    "set with a map": (["--set", "negative={a: 1}"], "recipe", ["negative"]),
    "list for one value": (["--set", "negative=[clamp,raise]"], "parameter", ["negative", "one value for all"]),
    "granularity unknown": (["--granularity", "foo"], "unknown_name", ["granularity", "'foo'", "tensor"]),
    "granularity misspelt": (["--granularity", "rows"], "unknown_name", ["'rows'", "mean row?"]),
    "granularity by set": (["--set", "granularity=rwo"], "unknown_name", ["'rwo'"]),
    "block_regex broken": (["--granularity", "block", "--set", "block_regex=(a"], "parameter", ["block_regex", "'(a'"]),
    "block_regex a number": (["--set", "block_regex=5"], "parameter", ["block_regex", "5"]),
    "dtype of integers": (["--dtype", "int8"], "recipe", ["dtype", "'int8'", "float32", "bfloat16"]),
    "dtype of nothing": (["--dtype", ""], "recipe", ["dtype", "''"]),
    "device unknown": (["--device", "foo"], "unknown_name", ["device", "'foo'", "cuda", "auto"]),
    "device misspelt": (["--device", "cudda"], "unknown_name", ["'cudda'", "mean cuda?"]),
    "device of no number": (["--device", "cuda:x"], "unknown_name", ["'cuda:x'"]),
    "device of a raised number": (["--device", "cuda:\u00b2"], "unknown_name", ["device"]),
    "workers zero": (["--workers", "0"], "parameter", ["--workers", "at least 1", "got 0"]),
    "workers negative": (["--workers", "-3"], "parameter", ["--workers", "got -3"]),
    "workers a word": (["--workers", "many"], "usage", ["--workers", "'many'"]),
    "memory too small": (
        ["--memory", "1KB"],
        "parameter",
        ["--memory", "too small", "expected at least", "MiB", "got"],
    ),
    "memory a word": (["--memory", "abc"], "parameter", ["not a size", "'abc'", "MiB"]),
    "memory of an unknown unit": (["--memory", "5XB"], "parameter", ["'5XB'"]),
    "memory zero": (["--memory", "0GB"], "parameter", ["above 0", "'0GB'"]),
    "memory endless": (["--memory", "9" * 400 + "GB"], "parameter", ["size"]),
    "shard size a word": (["--shard-size", "abc"], "parameter", ["not a size", "'abc'"]),
    "shard size zero": (["--shard-size", "0"], "parameter", ["above 0"]),
    "shard size negative": (["--shard-size", "-5GB"], "parameter", ["'-5GB'"]),
    "shard size endless": (["--shard-size", "9" * 400], "parameter", ["size"]),
    "seed a word": (["--seed", "x"], "usage", ["--seed", "'x'"]),
    "missing unknown": (["--missing", "mean"], "recipe", ["missing", "'mean'", "average"]),
    "mismatch unknown": (["--mismatch", "average"], "recipe", ["mismatch", "'average'", "first"]),
    "template too high": (["--template", "9"], "usage", ["--template", "base, or 1 to 2", "got 9"]),
    "template zero": (["--template", "0"], "usage", ["--template", "got 0"]),
    "template a raised number": (["--template", "\u00b2"], "usage", ["--template"]),
    "template a word": (["--template", "bas"], "usage", ["--template", "got bas"]),
    "only broken": (["--only", "["], "parameter", ["--only", "regular expression", "'['"]),
    "only matches nothing": (["--only", "^embed"], "usage", ["--only", "'^embed'", "matches no tensor"]),
    "one of two matches nothing": (["--only", "norm", "--only", "^embed"], "usage", ["--only", "'^embed'"]),
    "exclude broken": (["--exclude", "(a"], "parameter", ["--exclude", "regular expression", "'(a'"]),
    "exclude matches nothing": (["--exclude", "bias"], "usage", ["--exclude", "'bias'", "matches no tensor"]),
    "rename without equals": (["--rename", "layers"], "parameter", ["--rename", "[base:|N:]REGEX=REPL", "'layers'"]),
    "rename of nothing": (["--rename", "=x"], "parameter", ["--rename", "'=x'"]),
    "rename broken": (["--rename", "(layers=x"], "parameter", ["--rename", "regular expression"]),
    "rename of group unknown": (["--rename", r"layers=\9"], "parameter", ["--rename"]),
    "rename of group name unknown": (["--rename", r"layers=\g<x>"], "parameter", ["--rename"]),
    "rename of group cut": (["--rename", "layers=\\"], "parameter", ["--rename"]),
    "rename of model unknown": (["--rename", "3:layers=x"], "usage", ["--rename", "3", "base, 1 to 2"]),
    "rename matches nothing": (["--rename", "embed=x"], "usage", ["--rename", "'embed'", "matches nothing"]),
    "rename to one name": (["--rename", r"layers.\d=x"], "usage", ["--rename", "one name", "x.weight"]),
    "rename to nothing": (["--rename", "norm.weight="], "usage", ["--rename", "norm.weight"]),
    "missing value": (["--dtype"], "usage", ["--dtype"]),
    "word over": (["--only", "norm", "--quiet=yes"], "usage", ["--quiet"]),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_argument_is_refused(case: str, program: Program, kitchen: Kitchen) -> None:
    """A wrong argument is named, with what was expected and got; nothing is written."""
    arguments, kind, says = ARGUMENTS[case]
    if case == "missing value":
        check_error(program(*kitchen.stock(*arguments)), 2, says)
        assert not kitchen.out.exists()
        return
    program.refuses(*kitchen.stock(*arguments), kind=kind, says=says)


METHODS: dict[str, tuple[list[str], str, list[str]]] = {
    "unknown": (["--method", "model_stok", "a", "b"], "unknown_name", ["method", "'model_stok'", "mean model_stock?"]),
    "far from all": (["--method", "zzzzzz", "a", "b"], "unknown_name", ["'zzzzzz'", "known:", "linear", "slerp"]),
    "empty": (["--method", "", "a", "b"], "unknown_name", ["method"]),
    "no method": (["a", "b"], "usage", ["method", "recipe", "--method", "got a b"]),
    "granularity on linear": (
        ["--method", "linear", "a", "b", "--granularity", "row"],
        "usage",
        ["linear", "granularity", "row"],
    ),
    "granularity by set on linear": (
        ["--method", "linear", "a", "b", "--set", "granularity=row"],
        "unknown_name",
        ["linear", "'granularity'"],
    ),
    "no base": (["--method", "model_stock", "a", "b"], "usage", ["model_stock", "base", "--base"]),
    "one model": (
        ["--method", "model_stock", "--base", "base", "a"],
        "method",
        ["model_stock", "wise_ft", "2 or more", "got 1"],
    ),
    "base is the only other": (
        ["--method", "model_stock", "--base", "base", "a", "base"],
        "method",
        ["model_stock", "2 or more", "got 1"],
    ),
    "wise_ft of two": (
        ["--method", "wise_ft", "--base", "base", "a", "b"],
        "method",
        ["wise_ft", "expected 1", "got 2"],
    ),
    "slerp of one": (["--method", "slerp", "a", "--set", "t=.5"], "method", ["slerp", "two inputs", "1 models"]),
    "slerp of three": (
        ["--method", "slerp", "--base", "base", "a", "b", "--set", "t=.5"],
        "method",
        ["slerp", "two inputs"],
    ),
    "slerp without t": (["--method", "slerp", "a", "b"], "parameter", ["slerp", "needs t", "--set t="]),
    "too few weights": (
        ["--method", "linear", "a", "b", "--set", "weight=[1]"],
        "parameter",
        ["weight", "expected 2 values", "got 1"],
    ),
    "too many weights": (
        ["--method", "linear", "a", "b", "--set", "weight=[1,2,3]"],
        "parameter",
        ["weight", "expected 2 values", "got 3"],
    ),
    "weights of words": (
        ["--method", "linear", "a", "b", "--set", "weight=[x,1]"],
        "parameter",
        ["weight", "linear", "'x'", "float"],
    ),
    "weight of NaN": (["--method", "linear", "a", "b", "--set", "weight=.nan"], "parameter", ["weight", "nan"]),
    "weight of infinity": (["--method", "linear", "a", "b", "--set", "weight=.inf"], "parameter", ["weight", "inf"]),
    "weight true": (["--method", "linear", "a", "b", "--set", "weight=true"], "parameter", ["weight", "True"]),
    "weight of nothing": (["--method", "linear", "a", "b", "--set", "weight="], "recipe", ["weight"]),
    "weights sum to zero": (
        ["--method", "linear", "a", "b", "--set", "weight=[1,-1]"],
        "parameter",
        ["linear", "zero", "normalize=false"],
    ),
    "task weights sum to zero": (
        [
            "--method",
            "task_arithmetic",
            "--base",
            "base",
            "a",
            "b",
            "--set",
            "weight=[1,-1]",
            "--set",
            "normalize=true",
        ],
        "parameter",
        ["task_arithmetic", "zero", "normalize=false"],
    ),
    "normalize a word": (
        ["--method", "linear", "a", "b", "--set", "normalize=often"],
        "parameter",
        ["normalize", "'often'", "bool"],
    ),
    "alpha a word": (
        ["--method", "wise_ft", "--base", "base", "a", "--set", "alpha=half"],
        "parameter",
        ["alpha", "'half'", "float"],
    ),
    "rename of a base that is not there": (
        ["--method", "linear", "a", "b", "--rename", "base:x=y"],
        "usage",
        ["--rename", "base"],
    ),
    "template of a base that is not there": (
        ["--method", "linear", "a", "b", "--template", "base"],
        "usage",
        ["--template", "got base"],
    ),
}


@pytest.mark.parametrize("case", METHODS)
def test_method_refuses(case: str, program: Program, kitchen: Kitchen) -> None:
    """A method that cannot work on what it was given says what it needs; nothing is written."""
    arguments, kind, says = METHODS[case]
    program.refuses("merge", *arguments, "--out", kitchen.out, kind=kind, says=says)


@pytest.mark.parametrize(
    ("arguments", "command", "says"),
    [
        (["marge"], "marge", ["marge"]),
        (["--vresion"], "", ["--vresion"]),
        (["merge", "a", "b", "--method", "linear"], "merge", ["--out"]),
        (["merge", "--method", "linear", "--out", "out"], "merge", ["FT1"]),
        (["methods", "linaer"], "methods", ["'linaer'", "linear"]),
        (["methods", "a", "b"], "methods", ["b"]),
        (["verify"], "verify", ["OUT"]),
        (["verify", "base", "--recompute", "2"], "verify", ["--recompute", "0 to 1", "2"]),
        (["verify", "base", "--recompute", "nan"], "verify", ["--recompute", "nan"]),
        (["verify", "base", "--recompute", "half"], "verify", ["--recompute", "half"]),
    ],
)
def test_usage_error(arguments: list[str], command: str, says: list[str], program: Program, kitchen: Kitchen) -> None:
    """An unknown command, a missing argument or one too many is one line and exit 2; with ``--json`` an object."""
    check_error(program(*arguments), 2, says)
    outcome = program(*arguments, "--json")
    check_error(outcome, 2, [] if command == "" else says)
    assert outcome.data["status"] == "error"
    assert outcome.data["error"]["message"] == outcome.first
    assert not kitchen.out.exists()


def test_no_arguments_prints_help(program: Program) -> None:
    """Without arguments the program shows its commands."""
    outcome = program()
    assert outcome.code in (0, 2)
    assert "merge" in outcome.out + outcome.err
    if outcome.code:
        assert outcome.first


def test_gpu_that_is_not_there(program: Program, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--device cuda`` without a GPU says so and offers the CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for device in ("cuda", "cuda:0", "cuda:7"):
        program.refuses(*kitchen.stock("--device", device), kind="usage", says=["GPU", f"got {device}", "--device cpu"])


@pytest.mark.parametrize("number", ["1e-1", "1e0", "5E-1"])
def test_numbers_in_scientific_notation(number: str, program: Program, kitchen: Kitchen) -> None:
    """``1e-5`` is a number, as recipes of the field write it (YAML 1.1 alone would read a word)."""
    program.does(
        "merge", "--method", "wise_ft", "--base", "base", "a", "--out", kitchen.out, "--set", f"alpha={number}"
    )
    program.does("merge", "--method", "linear", "a", "b", "--out", "out2", "--set", f"weight=[{number}, 1]")


BASES: dict[str, tuple[str, str, list[str]]] = {
    "nowhere": ("nowhere", "not_found", ["no such", "file nowhere"]),
    "a path that is nowhere": ("./no/where", "not_found", ["no such", "./no/where"]),
    "a Hub id": ("some/where", "not_found", ["no such path", "Hub id", "some/where", "HF_HUB_OFFLINE"]),
    "a home of nobody": ("~nobody-has-this-name/x", "not_found", ["~nobody-has-this-name/x"]),
    "too long a name": ("x" * 300, "not_found", ["x" * 300]),
    "too long a path": ("x/" * 3000, "not_found", ["x/x/"]),
    "a file for a folder": ("base/model.safetensors/x", "not_found", ["base/model.safetensors/x"]),
}


@pytest.mark.parametrize("case", BASES)
def test_input_that_is_not_there(
    case: str, program: Program, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An input that is neither a path nor a reachable Hub id is named as typed."""
    ref, kind, says = BASES[case]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when it is imported, by whichever test
    program.refuses(*kitchen.stock()[:4], ref, "a", "b", "--out", kitchen.out, kind=kind, says=says)
    program.refuses("merge", "--method", "linear", "a", ref, "--out", kitchen.out, kind=kind, says=says)


def test_names_that_are_not_utf8(kitchen: Kitchen) -> None:
    """A path of arbitrary bytes in an error is still one JSON object in UTF-8, and no traceback."""
    command = [sys.executable, "-m", "stockpot", "merge", "--method", "linear", b"\xff\xfe", "--out", "out", "--json"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60, cwd=kitchen.root)
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout.decode().count("\n") == 1


def test_model_in_a_folder_whose_name_is_not_utf8(program: Program, kitchen: Kitchen) -> None:
    """A model whose path is no UTF-8 is merged, or refused with a word on its name."""
    odd = kitchen.root / os.fsdecode(b"odd\xff")
    kitchen.a.rename(odd)
    outcome = program("merge", "--method", "linear", odd, kitchen.b, "--out", kitchen.out)
    if outcome.code:
        check_error(outcome, 2, ["odd"])
        assert not kitchen.out.exists()


def test_real_process_prints_one_line(kitchen: Kitchen) -> None:
    """As a process too: exit 2, one unwrapped line on stderr however narrow the terminal, nothing on stdout."""
    deep = kitchen.root / ("long-name-" * 12) / ("x" * 100)
    command = [sys.executable, "-m", "stockpot", "merge", "--method", "linear", str(deep), "a", "--out", "out"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "COLUMNS": "40"},
        cwd=kitchen.root,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert str(deep) in done.stderr
    assert not kitchen.out.exists()


def test_verbose_adds_the_traceback(program: Program, kitchen: Kitchen) -> None:
    """``-v`` shows where an error came from; the line itself stays."""
    outcome = program(*kitchen.stock("--template", "9", "-v"))
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert re.search(r"^stockpot: error: --template", outcome.err, re.MULTILINE)


def test_weight_sum_is_seen_before_anything_is_read(program: Program, kitchen: Kitchen) -> None:
    """What arguments alone can tell is refused by the dry run too."""
    arguments = ["merge", "--method", "linear", "a", "b", "--out", kitchen.out, "--set", "weight=[1,-1]", "--dry-run"]
    program.refuses(*arguments, kind="parameter", says=["zero"])


def test_numbers_helper_is_seeded() -> None:
    """The fixtures are the same in every run."""
    assert torch.equal(numbers(3, seed=1), numbers(3, seed=1))
    assert not torch.equal(numbers(3, seed=1), numbers(3, seed=2))


def test_kitchen_has_not_grown(kitchen: Kitchen) -> None:
    """The fixture makes the inputs and nothing else."""
    assert sorted(path.name for path in Path(kitchen.root).iterdir()) == ["a", "b", "base"]
