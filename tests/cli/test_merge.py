"""The command line as it is meant to be used: help, plans, merges, recipes, policies, layouts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
import yaml

from ._kitchen import Kitchen, Program, load, numbers, save_shards, snapshot

PLAN_FIELDS = {
    "bytes_read",
    "bytes_written",
    "passes",
    "peak_memory_bytes",
    "disk_needed_bytes",
    "disk_free_bytes",
    "decisions",
}
DONE_FIELDS = {
    "out",
    "method",
    "tensors",
    "bytes_read",
    "bytes_written",
    "seconds",
    "peak_memory_bytes",
    "ratio",
    "decisions",
}


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a process."""
    command = [sys.executable, "-m", "stockpot", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor."""
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy())


def test_dry_run_prints_a_plan(program: Program, kitchen: Kitchen) -> None:
    """The plan says what would be read and written, and creates nothing."""
    before = snapshot(kitchen.root)
    outcome = program.does(*kitchen.stock("--dry-run"))
    for word in ("model_stock", "432 B", "reads", "writes", "peak memory", "disk", "template", "tokenizer.json"):
        assert word in outcome.out
    assert snapshot(kitchen.root) == before


@pytest.mark.parametrize("arguments", [[], ["--granularity", "row"], ["--granularity", "model"], ["--exclude", "norm"]])
def test_dry_run_as_json_foretells_the_merge(arguments: list[str], program: Program, kitchen: Kitchen) -> None:
    """The plan's numbers are those that the merge then reports."""
    before = snapshot(kitchen.root)
    plan = program.does(*kitchen.stock("--dry-run", "--json", *arguments)).data
    assert snapshot(kitchen.root) == before
    assert set(plan) >= PLAN_FIELDS | {"stockpot", "command", "status", "warnings"}
    assert (plan["command"], plan["status"]) == ("merge", "planned")
    done = program.does(*kitchen.stock("--json", *arguments)).data
    for field in ("bytes_read", "bytes_written", "decisions", "tensors", "method"):
        assert done[field] == plan[field], field
    written = sum(file.stat().st_size for file in kitchen.out.glob("model*.safetensors"))
    assert plan["bytes_written"] == written
    assert plan["disk_needed_bytes"] >= sum(file.stat().st_size for file in kitchen.out.iterdir())


def test_passes(program: Program, kitchen: Kitchen) -> None:
    """A method that measures nothing, or whose tensors fit the memory, needs one pass; a whole-model ratio two."""
    assert program.does(*kitchen.soup("--dry-run", "--json")).data["passes"] == 1
    assert program.does(*kitchen.stock("--dry-run", "--json")).data["passes"] == 1
    two = program.does(*kitchen.stock("--dry-run", "--json", "--granularity", "model")).data
    assert two["passes"] == 2
    assert two["bytes_read"] == 2 * 432


def test_done_as_json(program: Program, kitchen: Kitchen) -> None:
    """The object of a finished merge has every promised field, of the promised kind."""
    data = program.does(*kitchen.stock("--json")).data
    assert set(data) >= DONE_FIELDS | {"stockpot", "command", "status", "warnings"}
    assert (data["command"], data["status"], data["method"]) == ("merge", "done", "model_stock")
    assert data["out"] == str(kitchen.out)
    assert data["tensors"] == 3
    assert data["bytes_read"] == 432
    assert data["peak_memory_bytes"] > 10_000_000
    assert data["seconds"] >= 0
    assert data["decisions"] == []
    ratio = data["ratio"]
    assert set(ratio) >= {"min", "median", "max", "clamped"}
    assert 0 <= ratio["min"] <= ratio["median"] <= ratio["max"] <= 1
    assert program.does(*kitchen.soup("--json", out=kitchen.root / "soup")).data["ratio"] is None


def test_json_of_a_process(kitchen: Kitchen) -> None:
    """As a process: one object on stdout, the summary on stderr."""
    done = process(*map(str, kitchen.stock("--json")))
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "done"
    assert done.stderr.startswith("stockpot: model_stock: 3 tensors")


def test_last_line(program: Program, kitchen: Kitchen) -> None:
    """The last line on stderr says what was done, how fast, and what the ratios were; stdout is empty."""
    outcome = program.does(*kitchen.stock())
    assert outcome.out == ""
    last = outcome.err.splitlines()[-1]
    for word in ("stockpot: model_stock", "3 tensors", "432 B read", "written in", "peak memory", "t 0.", "clamped"):
        assert word in last


@pytest.mark.parametrize("option", ["--quiet", "-q"])
def test_quiet(option: str, program: Program, kitchen: Kitchen) -> None:
    """--quiet says nothing, and errors still."""
    outcome = program.does(*kitchen.stock(option))
    assert (outcome.out, outcome.err) == ("", "")
    assert program(*kitchen.stock(option)).first


def test_loads_with_the_library(program: Program, kitchen: Kitchen) -> None:
    """The output is a folder as the inputs are: names, shapes, dtypes, side files; the config's dtype is right."""
    program.does(*kitchen.stock("--dtype", "bfloat16"))
    found = load(kitchen.out)
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in kitchen.tensors(1).items()}
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert json.loads((kitchen.out / "config.json").read_text()) == {"model_type": "tiny", "dtype": "bfloat16"}
    assert (kitchen.out / "tokenizer.json").read_bytes() == (kitchen.a / "tokenizer.json").read_bytes()
    with safetensors.safe_open(kitchen.out / "model.safetensors", "pt") as handle:
        assert handle.metadata()["format"] == "pt"


def test_soup_is_the_mean(program: Program, kitchen: Kitchen) -> None:
    """A uniform soup is the mean; weights are in model order."""
    program.does(*kitchen.soup())
    program.does(*kitchen.soup("--set", "weight=[3,1]", out=kitchen.root / "weighted"))
    a, b = kitchen.tensors(1), kitchen.tensors(2)
    for name in a:
        mean = (a[name].double() + b[name].double()) / 2
        weighted = a[name].double() * 0.75 + b[name].double() * 0.25
        # One rounding to float32.
        torch.testing.assert_close(load(kitchen.out)[name].double(), mean, rtol=2**-24, atol=1e-12)
        torch.testing.assert_close(load(kitchen.root / "weighted")[name].double(), weighted, rtol=2**-24, atol=1e-12)


def comparable(out: Path) -> dict[str, bytes]:
    """Files of an output that must be the same for the same job."""
    return {
        p.name: p.read_bytes()
        for p in out.iterdir()
        if p.name in ("model.safetensors", "stockpot_geometry.safetensors")
    }


RECIPES: dict[str, tuple[dict[str, object], list[object]]] = {
    "model_stock": (
        {"merge_method": "model_stock", "base_model": "base", "models": [{"model": "a"}, {"model": "b"}]},
        ["--method", "model_stock", "--base", "base", "a", "b"],
    ),
    "linear": (
        {
            "merge_method": "linear",
            "models": [{"model": n, "parameters": {"weight": w}} for n, w in (("a", 0.3), ("b", 0.7))],
        },
        ["--method", "linear", "a", "b", "--set", "weight=[.3,.7]"],
    ),
    "shared parameters": (
        {
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "models": [{"model": "a"}, {"model": "b"}],
            "parameters": {"weight": 0.5, "lambda": 0.9},
            "dtype": "torch.float16",
        },
        [
            "--method",
            "task-arithmetic",
            "--base",
            "base",
            "a",
            "b",
            "--set",
            "weight=.5",
            "--set",
            "lambda=.9",
            "--dtype",
            "float16",
        ],
    ),
    "slerp": (
        {
            "merge_method": "slerp",
            "base_model": "a",
            "models": [{"model": "a"}, {"model": "b"}],
            "parameters": {"t": 0.25},
        },
        ["--method", "slerp", "--base", "a", "b", "--set", "t=.25"],
    ),
    "our keys": (
        {
            "merge_method": "model_stock",
            "base_model": "base",
            "models": [{"model": "a"}, {"model": "b"}],
            "granularity": "row",
            "policies": {"exclude": ["norm"], "template": "2"},
        },
        [
            "--method",
            "model_stock",
            "--base",
            "base",
            "a",
            "b",
            "--granularity",
            "row",
            "--exclude",
            "norm",
            "--template",
            "2",
        ],
    ),
    "filter_wise": (
        {
            "merge_method": "model_stock",
            "base_model": "base",
            "models": [{"model": "a"}, {"model": "b"}],
            "parameters": {"filter_wise": True},
        },
        ["--method", "model_stock", "--base", "base", "a", "b", "--set", "granularity=row"],
    ),
    "the base among the models": (
        {"merge_method": "model_stock", "base_model": "base", "models": [{"model": n} for n in ("a", "base", "b")]},
        ["--method", "model_stock", "--base", "base", "a", "b"],
    ),
}


@pytest.mark.parametrize("case", RECIPES)
def test_recipe_equals_flags(case: str, program: Program, kitchen: Kitchen) -> None:
    """A recipe file gives the same bytes as the flags that say the same; the recorded recipe gives them again."""
    recipe, flags = RECIPES[case]
    (kitchen.root / "r.yaml").write_text(yaml.safe_dump(recipe))
    program.does("merge", "r.yaml", "--out", "by-recipe")
    program.does("merge", *flags, "--out", "by-flags")
    program.does("merge", "by-flags/stockpot_recipe.yaml", "--out", "again")
    expected = comparable(kitchen.root / "by-flags")
    assert comparable(kitchen.root / "by-recipe") == expected
    assert comparable(kitchen.root / "again") == expected


OVERRIDES: list[tuple[list[str], list[str]]] = [
    (["--dtype", "float16"], ["--dtype", "float16"]),
    (["--set", "weight=[1,3]"], ["--set", "weight=[1,3]"]),
    (["--only", "norm"], ["--only", "norm"]),
    (["--exclude", "layers"], ["--exclude", "layers"]),
    (["--rename", r"^layers=blocks"], ["--rename", r"^layers=blocks"]),
    (["--template", "2"], ["--template", "2"]),
]


@pytest.mark.parametrize(("override", "flags"), OVERRIDES, ids=[" ".join(words) for words, _ in OVERRIDES])
def test_options_override_the_recipe(override: list[str], flags: list[str], program: Program, kitchen: Kitchen) -> None:
    """Options replace the recipe's top level, and the resolved recipe is what is recorded."""
    recipe = {
        "merge_method": "linear",
        "models": [{"model": n, "parameters": {"weight": 1}} for n in ("a", "b")],
        "dtype": "float64",
        "out_dtype": "float64",
        "policies": {"only": ["layers.0"], "exclude": ["xyz|layers.1"]},
    }
    (kitchen.root / "r.yaml").write_text(yaml.safe_dump(recipe))
    before = ["--dtype", "float64", "--only", "layers.0", "--exclude", "xyz|layers.1"]
    if "--rename" in override:
        override = flags = [*override, "--only", "norm", "--exclude", "norm"]
    kept = [w for pair in zip(before[::2], before[1::2], strict=True) if pair[0] not in override for w in pair]
    program.does("merge", "r.yaml", *override, "--out", "by-recipe")
    program.does("merge", "--method", "linear", "a", "b", *kept, *flags, "--out", "by-flags")
    assert comparable(kitchen.root / "by-recipe") == comparable(kitchen.root / "by-flags")
    recorded = json.loads((kitchen.root / "by-recipe" / "stockpot.json").read_text())["recipe"]
    again = json.loads((kitchen.root / "by-flags" / "stockpot.json").read_text())["recipe"]
    assert recorded["policies"] == again["policies"]
    assert (recorded["out_dtype"] or recorded["dtype"]) == (again["out_dtype"] or again["dtype"])


def test_wrappers_of_a_pickle_are_said(program: Program, kitchen: Kitchen) -> None:
    """What was unwrapped from a pickled input is said where the user sees it."""
    torch.save({"state_dict": {f"module.{n}": t for n, t in kitchen.tensors(2).items()}}, kitchen.root / "b.pt")
    arguments = ["merge", "--method", "linear", "a", "b.pt"]
    data = program.does(*arguments, "--out", "plan", "--dry-run", "--json").data
    text = json.dumps(data)
    assert "state_dict" in text
    assert "module." in text


@pytest.mark.parametrize("size", ["1KB", "80", "100B", "0.1KiB", "1GB"])
def test_shard_size(size: str, program: Program, kitchen: Kitchen) -> None:
    """Weights are split by size: the index names every tensor's file, sizes are kept, and all of it loads."""
    program.does(*kitchen.stock("--shard-size", size))
    program.does(*kitchen.stock(out=kitchen.root / "whole"))
    files = sorted(path.name for path in kitchen.out.glob("model*.safetensors"))
    if size in ("1KB", "1GB"):
        assert files == ["model.safetensors"]
        assert not (kitchen.out / "model.safetensors.index.json").exists()
    else:
        assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
        index = json.loads((kitchen.out / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(4 * t.numel() for t in kitchen.tensors(0).values())
        for name, file in index["weight_map"].items():
            assert name in safetensors.torch.load_file(kitchen.out / file)
        assert set(index["weight_map"]) == set(kitchen.tensors(0))
        assert set(index["weight_map"].values()) == set(files)
    whole = load(kitchen.root / "whole")
    assert {name: raw(tensor) for name, tensor in load(kitchen.out).items()} == {n: raw(t) for n, t in whole.items()}
    program.does("verify", kitchen.out, "--recompute", "1")


def test_shards_as_the_template_has_them(program: Program, kitchen: Kitchen) -> None:
    """A sharded template gives a sharded output with the same files, and each tensor in the same one."""
    tensors = kitchen.tensors(1)
    names = list(tensors)
    (kitchen.a / "model.safetensors").unlink()
    save_shards([{names[2]: tensors[names[2]]}, {name: tensors[name] for name in names[:2]}], kitchen.a)
    program.does(*kitchen.stock())
    for file in kitchen.a.glob("*.safetensors"):
        assert set(safetensors.torch.load_file(kitchen.out / file.name)) == set(safetensors.torch.load_file(file))


@pytest.mark.parametrize("stem", ["open_clip_model", "diffusion_pytorch_model", "adapter_model", "my weights"])
def test_stem_is_the_templates(stem: str, program: Program, kitchen: Kitchen) -> None:
    """The weight file is called as the template's; the output can be verified, and be an input again."""
    for folder in (kitchen.base, kitchen.a, kitchen.b):
        (folder / "model.safetensors").rename(folder / f"{stem}.safetensors")
    program.does(*kitchen.stock())
    assert (kitchen.out / f"{stem}.safetensors").is_file()
    program.does("verify", kitchen.out)
    program.does("merge", "--method", "linear", "out", "a", "--out", "again")


def test_one_file(program: Program, kitchen: Kitchen) -> None:
    """OUT.safetensors is one file that the library reads, with its provenance in the header."""
    out = kitchen.root / "out.safetensors"
    program.does(*kitchen.stock(out=out))
    program.does(*kitchen.stock())
    assert {n: raw(t) for n, t in load(out).items()} == {n: raw(t) for n, t in load(kitchen.out).items()}
    with safetensors.safe_open(out, "pt") as handle:
        record = json.loads(handle.metadata()["stockpot"])
        assert handle.metadata()["format"] == "pt"
    assert record["recipe"]["merge_method"] == "model_stock"
    assert set(record["tensors"]) == set(kitchen.tensors(0))
    assert not (kitchen.root / "out.safetensors.partial").exists()
    program.does("verify", out, "--recompute", "1")


def test_one_pickled_file(program: Program, kitchen: Kitchen) -> None:
    """OUT.pt is a state dict that torch loads with weights only."""
    out = kitchen.root / "out.pt"
    program.does(*kitchen.stock(out=out))
    program.does(*kitchen.stock())
    found = torch.load(out, weights_only=True)
    assert {n: raw(t) for n, t in found.items()} == {n: raw(t) for n, t in load(kitchen.out).items()}
    program.does("verify", out, "--recompute", "1")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_one_file_of_many_sharded_inputs(suffix: str, program: Program, kitchen: Kitchen) -> None:
    """The room kept for the provenance is enough for many models of many shards."""
    shards = [{f"t{number}": numbers(1, seed=number)} for number in range(40)]
    models = [save_shards(shards, kitchen.root / f"model-with-a-name-{number}") for number in range(12)]
    program.does("merge", "--method", "linear", *models, "--out", kitchen.root / f"one{suffix}")


@pytest.mark.parametrize("name", ['"' * 300, "\\" * 300, "\u00e4\U0001f600" * 60, "a\nb\tc"])
@pytest.mark.parametrize("out", ["out", "out.safetensors", "out.pt"])
def test_names_of_any_letters(name: str, out: str, program: Program, kitchen: Kitchen) -> None:
    """Names that JSON must escape, or of any script, are merged and written like others."""
    kitchen.everywhere(**{name: numbers(2)})
    program.does(*kitchen.stock(out=kitchen.root / out))
    found = torch.load(kitchen.root / out, weights_only=True) if out.endswith(".pt") else load(kitchen.root / out)
    assert name in found
    program.does("verify", kitchen.root / out, "--recompute", "1")


def test_pickled_inputs_come_out_as_safetensors(program: Program, kitchen: Kitchen) -> None:
    """Folders with pytorch_model.bin give a folder with model.safetensors of the same bytes as safetensors inputs."""
    program.does(*kitchen.stock(out=kitchen.root / "plain"))
    for number, folder in enumerate((kitchen.base, kitchen.a, kitchen.b)):
        (folder / "model.safetensors").unlink()
        torch.save(kitchen.tensors(number), folder / "pytorch_model.bin")
    program.does(*kitchen.stock())
    assert (kitchen.out / "model.safetensors").read_bytes() == (
        kitchen.root / "plain" / "model.safetensors"
    ).read_bytes()
    assert not list(kitchen.out.glob("*.bin"))


def test_same_bytes_however_it_is_run(program: Program, kitchen: Kitchen) -> None:
    """Workers and memory change no byte of what is deterministic."""
    kitchen.everywhere(large=numbers(600, 500))
    kitchen.change(kitchen.a, large=numbers(600, 500) + numbers(600, 500, seed=1) * 0.1)
    kitchen.change(kitchen.b, large=numbers(600, 500) + numbers(600, 500, seed=2) * 0.1)
    names = ("model.safetensors", "stockpot.json", "stockpot_geometry.safetensors", "stockpot_recipe.yaml")
    results = []
    for place, more in enumerate(([], ["--workers", "1"], ["--workers", "5"], ["--memory", "24MiB"])):
        program.does(*kitchen.stock(*more, out=kitchen.root / f"out{place}"))
        results.append({name: (kitchen.root / f"out{place}" / name).read_bytes() for name in names})
    assert all(result == results[0] for result in results)


def test_environment_is_left_as_it_was(program: Program, kitchen: Kitchen) -> None:
    """A merge changes no process-wide setting: threads, seed, current folder, umask."""
    torch.manual_seed(3)
    before = (torch.get_num_threads(), torch.get_rng_state().tolist(), Path.cwd(), torch.get_default_dtype())
    program.does(*kitchen.stock())
    assert (torch.get_num_threads(), torch.get_rng_state().tolist(), Path.cwd(), torch.get_default_dtype()) == before
