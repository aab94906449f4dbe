"""Inputs that lie, do not correspond, or hold what cannot be merged: refused by name, and nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from tests.checkpoint._corpus import CODE, CONTAINERS, DAMAGED, HEADERS, MARK, armed, zip_file

from ._kitchen import Kitchen, Outcome, Program, check_error, load, numbers, save, sharded, snapshot

BAD = "a"


@pytest.mark.parametrize("case", HEADERS)
def test_header_that_lies(case: str, program: Program, kitchen: Kitchen) -> None:
    """A file whose header lies is refused by the kind of its lie, with its path, tensor and values."""
    lie = HEADERS[case]
    (kitchen.a / "model.safetensors").write_bytes(lie.content)
    program.refuses(*kitchen.stock(), kind=lie.kind, says=["a/model.safetensors", *lie.says])


@pytest.mark.parametrize("cut", [1, 50, 150, 10_000])
def test_truncated_file(cut: int, program: Program, kitchen: Kitchen) -> None:
    """A file that was not copied whole is refused before anything is merged, with both sizes."""
    file = kitchen.b / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: max(len(content) - cut, 0)])
    program.refuses(*kitchen.stock(), kind="truncated_file", says=["b/model.safetensors", "expected", "bytes", "got"])


def test_folder_without_weights(program: Program, kitchen: Kitchen) -> None:
    """A folder without weights is named, with what is there and what was looked for."""
    (kitchen.a / "model.safetensors").unlink()
    program.refuses(
        *kitchen.stock(),
        kind="no_weights",
        says=["no weights", "file", "/a;", "*.safetensors", "config.json", "tokenizer.json"],
    )


def test_empty_folder(program: Program, kitchen: Kitchen) -> None:
    """An empty folder is no checkpoint."""
    (kitchen.root / "empty").mkdir()
    program.refuses(
        "merge", "--method", "linear", "a", "empty", "--out", "out", kind="no_weights", says=["empty", "nothing"]
    )


def test_folder_with_several_checkpoints(program: Program, kitchen: Kitchen) -> None:
    """Several candidates are listed, and none is picked."""
    (kitchen.a / "model.safetensors").rename(kitchen.a / "ema.safetensors")
    save({"w": numbers(2)}, kitchen.a / "last.safetensors")
    program.refuses(
        *kitchen.stock(), kind="no_weights", says=["several", "ema.safetensors, last.safetensors", "name one"]
    )


@pytest.mark.parametrize("name", ["weights.txt", "model.gguf", "model"])
def test_file_of_another_kind(name: str, program: Program, kitchen: Kitchen) -> None:
    """A file that is no checkpoint by its ending is refused with the endings that are."""
    (kitchen.root / name).write_bytes(b"x")
    program.refuses(
        "merge", "--method", "linear", "a", name, "--out", "out", kind="checkpoint", says=[name, ".safetensors", ".bin"]
    )


def test_weights_that_are_a_folder(program: Program, kitchen: Kitchen) -> None:
    """A folder in place of the file is refused."""
    (kitchen.a / "model.safetensors").unlink()
    (kitchen.a / "model.safetensors").mkdir()
    program.refuses(*kitchen.stock(), kind="checkpoint", says=["a/model.safetensors"])


@pytest.mark.parametrize("name", ["a/model.safetensors", "a/model.safetensors.index.json", "r.yaml", "x.pt"])
def test_pipe_does_not_hang(name: str, kitchen: Kitchen) -> None:
    """A named pipe in place of a file is refused at once, instead of being waited for."""
    pipe = kitchen.root / name
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    models = [name] if name.endswith(".yaml") else ["--method", "linear", "a" if name.startswith("a/") else name, "b"]
    command = [sys.executable, "-m", "stockpot", "merge", *models, "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10, cwd=kitchen.root)
    check_error(Outcome(done.returncode, done.stdout, done.stderr), 2, [name])


def test_one_shape_differs(program: Program, kitchen: Kitchen) -> None:
    """A tensor of another shape is named, with its file, both shapes and the options that accept it."""
    kitchen.change(kitchen.b, norm__weight=numbers(5))
    outcome = program.refuses(
        *kitchen.stock(),
        kind="mismatch",
        says=[
            "shapes differ",
            "tensor norm.weight",
            "b/model.safetensors",
            "expected [4]",
            "got [5]",
            "--mismatch",
            "--exclude",
        ],
    )
    assert outcome.problems == []


@pytest.mark.parametrize("count", [2, 11, 12, 25])
def test_many_shapes_differ(count: int, program: Program, kitchen: Kitchen) -> None:
    """The first line counts them; ten more are listed, the rest counted: no tensor is counted twice."""
    kitchen.everywhere(**{f"t{number:02d}": numbers(2) for number in range(count)})
    kitchen.change(kitchen.a, **{f"t{number:02d}": numbers(3) for number in range(count)})
    outcome = program.refuses(*kitchen.stock(), kind="mismatch", says=["shapes differ", f"{count} tensors", "got [3]"])
    listed = outcome.problems[:10]
    assert len(listed) == min(count - 1, 10)
    assert all("t" in line and "[3]" in line for line in listed)
    assert outcome.problems[10:] == ([f"  and {count - 11} more"] if count > 11 else [])


@pytest.mark.parametrize("who", ["base", "a", "b"])
def test_one_tensor_is_missing(who: str, program: Program, kitchen: Kitchen) -> None:
    """A tensor that one input lacks is named, with the input and the options that accept it."""
    kitchen.change(kitchen.root / who, norm__weight=None)
    program.refuses(
        *kitchen.stock(), kind="missing_tensor", says=["missing", "norm.weight", f"/{who}", "--missing", "--exclude"]
    )


def test_all_missing_tensors_are_listed_at_once(program: Program, kitchen: Kitchen) -> None:
    """Tensors that different inputs lack come in one refusal, each with who lacks it."""
    kitchen.change(kitchen.base, norm__weight=None)
    kitchen.change(kitchen.a, layers__0__weight=None)
    kitchen.change(kitchen.b, extra=numbers(2))
    outcome = program.refuses(*kitchen.stock(), kind="missing_tensor", says=["3 tensors are missing"])
    text = "\n".join([outcome.first, *outcome.problems])
    for name in ("norm.weight", "layers.0.weight", "extra"):
        assert name in text


def test_missing_and_differing_at_once(program: Program, kitchen: Kitchen) -> None:
    """Missing tensors and differing shapes come in one refusal."""
    kitchen.change(kitchen.a, layers__0__weight=None)
    kitchen.change(kitchen.b, norm__weight=numbers(9))
    outcome = program.refuses(*kitchen.stock(), kind="missing_tensor", says=["layers.0.weight"])
    assert any("norm.weight" in line and "[9]" in line for line in outcome.problems)


@pytest.mark.parametrize("prefixed", ["base", "models", "one model", "soup"])
def test_prefix_is_suggested_and_the_suggestion_works(prefixed: str, program: Program, kitchen: Kitchen) -> None:
    """Names that differ by one prefix: the refusal says the very --rename to add, and with it the merge is done."""
    who = {"base": ["base"], "models": ["a", "b"], "one model": ["a"], "soup": ["b"]}[prefixed]
    for folder in who:
        number = ["base", "a", "b"].index(folder)
        save({f"vision.{name}": tensor for name, tensor in kitchen.tensors(number).items()}, kitchen.root / folder)
    arguments = kitchen.soup() if prefixed == "soup" else kitchen.stock()
    first = program.refuses(*arguments, kind="missing_tensor", says=["--rename '"]).first
    suggested = [part.split("'")[0] for part in first.split("--rename '")[1:]]
    program.does(*arguments, *(word for text in suggested for word in ("--rename", text)))
    assert len(load(kitchen.out)) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("who", ["base", "a", "b"])
def test_not_finite(value: float, who: str, program: Program, kitchen: Kitchen) -> None:
    """NaN or Inf in an input is refused with tensor, file and first index; --allow-nonfinite passes it through."""
    weight = kitchen.tensors(["base", "a", "b"].index(who))["layers.1.weight"].clone()
    weight[3, 1] = weight[4, 0] = value
    kitchen.change(kitchen.root / who, layers__1__weight=weight)
    says = ["not finite", "index [3, 1]", "tensor layers.1.weight", f"{who}/model.safetensors", "--allow-nonfinite"]
    program.refuses(*kitchen.stock(), kind="non_finite", says=says)
    program.does(*kitchen.stock("--allow-nonfinite"))
    assert not load(kitchen.out)["layers.1.weight"].isfinite().all()


@pytest.mark.parametrize(
    "arguments", [["--granularity", "row"], ["--granularity", "model"], ["--memory", "16MiB"], ["--workers", "1"]]
)
def test_first_index_is_the_same_however_it_is_run(arguments: list[str], program: Program, kitchen: Kitchen) -> None:
    """The first of several bad values is named, whatever the pieces and the workers."""
    large = numbers(900, 1100)
    kitchen.everywhere(large=large)
    for place in (5, 700, 899):
        large[place, 1099] = float("nan")
    kitchen.change(kitchen.b, large=large)
    program.refuses(
        *kitchen.stock(*arguments), kind="non_finite", says=["index [5, 1099]", "large", "b/model.safetensors"]
    )


@pytest.mark.parametrize("place", [[0], [3]])
def test_not_finite_in_a_soup(place: list[int], program: Program, kitchen: Kitchen) -> None:
    """Methods that measure nothing refuse NaN as well."""
    norm = numbers(4)
    norm[place] = float("nan")
    kitchen.change(kitchen.b, norm__weight=norm)
    program.refuses(*kitchen.soup(), kind="non_finite", says=[f"index {place}", "norm.weight", "b/model.safetensors"])


def test_not_finite_before_hidden_parents_are_made(program: Program, kitchen: Kitchen) -> None:
    """A refusal midway takes away the folders that were made on the way to OUT."""
    kitchen.change(kitchen.b, norm__weight=torch.full((4,), float("nan")))
    program.refuses(*kitchen.stock(out=kitchen.root / "new" / "deep" / "out"), kind="non_finite", says=["norm.weight"])


@pytest.mark.parametrize("dtype", ["float16"])
def test_overflow_of_the_output(dtype: str, program: Program, kitchen: Kitchen) -> None:
    """A finite result that does not fit the asked dtype is refused, naming the tensor and the place."""
    for number, folder in enumerate((kitchen.base, kitchen.a, kitchen.b)):
        kitchen.change(folder, norm__weight=torch.tensor([1.0, 2.0, 1e6 + number, 3.0]))
    says = ["does not fit float16", "index [2]", "norm.weight", "--dtype"]
    program.refuses(*kitchen.stock("--dtype", dtype), kind="non_finite", says=says)
    program.refuses(*kitchen.soup("--dtype", dtype), kind="non_finite", says=says)


def test_overflow_of_a_tensor_that_is_only_converted(program: Program, kitchen: Kitchen) -> None:
    """A tensor taken unmerged overflows no less."""
    kitchen.change(kitchen.b, extra=torch.tensor([1e9]))
    arguments = kitchen.stock("--dtype", "float16", "--missing", "first")
    program.refuses(*arguments, kind="non_finite", says=["float16", "extra"])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool])
def test_integers_that_differ(dtype: torch.dtype, program: Program, kitchen: Kitchen) -> None:
    """Integer tensors that differ over the models are refused by name; the base is not compared."""
    kitchen.everywhere(ids=torch.ones(3, dtype=dtype))
    kitchen.change(kitchen.base, ids=torch.zeros(3, dtype=dtype))
    program.does(*kitchen.stock(out=kitchen.root / "equal"))
    assert torch.equal(load(kitchen.root / "equal")["ids"], torch.ones(3, dtype=dtype))
    kitchen.change(kitchen.b, ids=torch.tensor([1, 0, 1]).to(dtype))
    program.refuses(*kitchen.stock(), kind="mismatch", says=["ids", "differ", "b/model.safetensors", "--mismatch"])


FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FP8)
def test_fp8_is_copied_where_equal_and_refused_where_not(
    dtype: torch.dtype, program: Program, kitchen: Kitchen
) -> None:
    """FP8 tensors are never merged: equal ones are copied byte for byte, different ones refused by name."""
    packed = numbers(3, 2).to(dtype)
    kitchen.everywhere(packed=packed)
    program.does(*kitchen.stock(out=kitchen.root / "equal"))
    found = load(kitchen.root / "equal")["packed"]
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), packed.view(torch.uint8))
    kitchen.change(kitchen.b, packed=(numbers(3, 2) + 1).to(dtype))
    program.refuses(*kitchen.stock(), kind="mismatch", says=["packed", "float8", "differ", "b/model.safetensors"])


@pytest.mark.parametrize("name", ["packed", "bn.running_mean", "bn.num_batches_tracked"])
def test_dtypes_that_cannot_go_together(name: str, program: Program, kitchen: Kitchen) -> None:
    """A tensor that is of numbers in one model and of integers in another is refused by name."""
    kitchen.everywhere(**{name: numbers(3)})
    kitchen.change(kitchen.b, **{name: torch.ones(3, dtype=torch.int64)})
    program.refuses(*kitchen.stock(), kind="mismatch", says=[name, "dtypes", "F32", "I64"])


def test_counter_that_is_no_integer(program: Program, kitchen: Kitchen) -> None:
    """A 0-d integer in one model and a 0-d float in another do not correspond."""
    kitchen.everywhere(n=torch.tensor(3))
    kitchen.change(kitchen.b, n=torch.tensor(3.5))
    program.refuses(*kitchen.stock(), kind="mismatch", says=["tensor n", "dtypes"])


@pytest.mark.parametrize("who", ["a", "base"])
@pytest.mark.parametrize("name", ["esc\x1b[2Jape", "bell\x07", "two\nlines", "back\rspace"])
def test_control_characters_in_names_are_not_printed(name: str, who: str, program: Program, kitchen: Kitchen) -> None:
    """A tensor's name cannot clear the reader's terminal, nor begin a line."""
    kitchen.change(kitchen.root / who, **{name: numbers(2), "other": numbers(2)})
    program.refuses(*kitchen.stock(), kind="missing_tensor", says=["2 tensors"])


def pickled(kitchen: Kitchen, content: bytes) -> Path:
    """``a`` as a pickle of these bytes."""
    (kitchen.a / "model.safetensors").unlink()
    file = kitchen.a / "pytorch_model.bin"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("case", ["reduce", "eval", "stack global", "inst", "inside a state dict", "newobj"])
def test_pickle_with_code(case: str, container: str, program: Program, kitchen: Kitchen) -> None:
    """A pickle that would run a command is refused, naming what it asks for; the command is not run."""
    code, named = CODE[case]
    mark = Path(tempfile.gettempdir()) / f"stockpot-{os.getpid()}-mark"
    assert MARK in code
    pickled(kitchen, CONTAINERS[container](armed(code, mark)))
    try:
        program.refuses(
            *kitchen.stock(), kind="unsafe_pickle", says=["a/pytorch_model.bin", named, "nothing of it was run"]
        )
        assert not mark.exists()
    finally:
        mark.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "case", ["a number", "a map of numbers", "a list of tensors", "no stop", "methods of a map overwritten"]
)
def test_pickle_that_is_no_state_dict(case: str, program: Program, kitchen: Kitchen) -> None:
    """A pickle of anything but named tensors is refused, naming the file."""
    pickled(kitchen, zip_file(DAMAGED[case]))
    program.refuses(*kitchen.stock(), kind="pickle_format", says=["a/pytorch_model.bin"])


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_pickle(zipped: bool, keep: float, program: Program, kitchen: Kitchen) -> None:
    """A pickled checkpoint that was not copied whole is refused before anything is merged."""
    (kitchen.a / "model.safetensors").unlink()
    file = kitchen.a / "pytorch_model.bin"
    kitchen.change(kitchen.base, big=numbers(1000))
    kitchen.change(kitchen.b, big=numbers(1000))
    torch.save(kitchen.tensors(1) | {"big": numbers(1000)}, file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    outcome = program(*kitchen.stock())
    check_error(outcome, 2, ["a/pytorch_model.bin"])
    assert not kitchen.out.exists()
    assert not kitchen.out.with_name("out.partial").exists()


def test_text_that_is_called_a_checkpoint(program: Program, kitchen: Kitchen) -> None:
    """A pointer file of git LFS in place of the weights is refused, naming the file."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (kitchen.a / "model.safetensors").write_bytes(pointer)
    outcome = program(*kitchen.stock())
    check_error(outcome, 2, ["a/model.safetensors"])
    (kitchen.a / "model.safetensors").unlink()
    (kitchen.a / "pytorch_model.bin").write_bytes(pointer)
    program.refuses(*kitchen.stock(), kind="pickle_format", says=["a/pytorch_model.bin"])


AS_ANOTHER_USER = """
import json, os, sys
from stockpot.cli import main
warm, out, home = sys.argv[1:4]
assert main(["merge", "--method", "linear", warm, "--out", warm + ".out", "--quiet"]) == 0
assert main(["merge", warm + ".yaml", "--out", "x", "--quiet"]) == 2
assert main(["methods", "nothing"]) == 2
os.setegid(65534)
os.seteuid(65534)
for case, models in json.loads(sys.argv[4]).items():
    print("case", case, file=sys.stderr)
    target = out if case == "out" else home + "/out-" + case
    print(main(["merge", *models, "--out", target]), file=sys.stderr)
"""
"""Imports all that a merge needs, then becomes nobody: the interpreter itself may lie where nobody can read."""


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed, whom only root can become")
def test_what_another_user_may_not_touch() -> None:
    """As another user: files and folders that may not be read or written are named, exit 2, nothing is written."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        home = root / "home"
        home.mkdir()
        os.chown(home, 65534, 65534)
        root.chmod(0o755)
        warm = save({"w": numbers(2)}, root / "warm")
        (root / "warm.yaml").write_text("merge_method: nothing\nmodels: [{model: x}]\n")
        cases: dict[str, list[str]] = {}
        named: dict[str, Path] = {}
        for case in ("file", "folder", "above", "config", "index", "recipe", "out"):
            (root / case).mkdir()
            kitchen = Kitchen.create(root / case)
            if case == "index":
                sharded(kitchen)
            recipe = root / case / "r.yaml"
            recipe.write_text(f"merge_method: linear\nmodels: [{{model: {kitchen.a}, parameters: {{weight: 1}}}}]\n")
            for file in (root / case).glob("*/*"):
                file.chmod(0o644)
            named[case] = {
                "file": kitchen.a / "model.safetensors",
                "folder": kitchen.a,
                "above": kitchen.a,
                "config": kitchen.a / "config.json",
                "index": kitchen.a / "model.safetensors.index.json",
                "recipe": recipe,
                "out": root / "out-of-reach",
            }[case]
            if case != "out":
                named[case].chmod(0)
            model = kitchen.a / "model.safetensors" if case == "above" else kitchen.a
            cases[case] = [str(recipe)] if case == "recipe" else ["--method", "linear", str(model), str(kitchen.b)]
        before = snapshot(root)
        arguments = [str(warm), str(named["out"]), str(home), json.dumps(cases)]
        done = subprocess.run(
            [sys.executable, "-c", AS_ANOTHER_USER, *arguments], capture_output=True, text=True, timeout=60, cwd=root
        )
        after = {key: value for key, value in snapshot(root).items() if not key.startswith("warm.out")}
        assert after == before
        printed = done.stderr.split("case ")[1:]
        assert [text.splitlines()[0] for text in printed] == list(cases)
        wrong = {}
        for text in printed:
            case, *lines, code = text.splitlines()
            if code != "2" or len(lines) != 1 or str(named[case]) not in lines[0] or "unexpected" in lines[0]:
                wrong[case] = text
        assert wrong == {}


def test_tensor_named_like_a_value_of_the_metadata(program: Program, kitchen: Kitchen) -> None:
    """A tensor named ``pt`` is not taken for the target of the metadata's ``format: pt``."""
    kitchen.everywhere(pt=numbers(2))
    save(kitchen.tensors(2) | {"pt": numbers(2)}, kitchen.b)
    program.does(*kitchen.stock())
    assert set(load(kitchen.out)) == {"pt", *kitchen.tensors(0)}


def test_tensor_without_a_name(program: Program, kitchen: Kitchen) -> None:
    """The empty name is a name; if it is refused, then not with a word on --rename, which was not given."""
    kitchen.everywhere(**{"": numbers(2)})
    outcome = program(*kitchen.stock())
    assert outcome.code == 0 or "--rename" not in outcome.first
