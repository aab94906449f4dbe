"""Recipes that cannot be read, or do not say what to do: each its own message, exit 2, nothing run or written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ._kitchen import Kitchen, Outcome, Program, check_error, load

GOOD = """\
merge_method: model_stock
base_model: base
models:
  - model: a
  - model: b
"""
MODELS = "models: [{model: a}, {model: b}]\n"
HEAD = "merge_method: model_stock\nbase_model: base\n"

RECIPES: dict[str, tuple[str, list[str]]] = {
    "empty": ("", ["one YAML document", "got 0 documents"]),
    "a word": ("hello", ["map", "got str"]),
    "a list": ("- a\n- b\n", ["map", "got list"]),
    "not YAML": ("merge_method: [", ["YAML", "line 1"]),
    "a tab": ("models:\n\t- a\n", ["YAML", "line 2"]),
    "an odd line": (GOOD + "  nothing\n here", ["YAML", "line"]),
    "a key twice": (GOOD + "base_model: a\n", ["'base_model'", "twice"]),
    "an inner key twice": (HEAD + "models: [{model: a, model: b}]\n", ["'model'", "twice"]),
    "two documents": (GOOD + "---\n" + GOOD, ["one YAML document", "got 2 documents"]),
    "a broken second document": (GOOD + "---\n[", ["YAML"]),
    "an unknown tag": (GOOD + "seed: !thing 3\n", ["YAML"]),
    "an unknown alias": (GOOD + "seed: *x\n", ["YAML", "alias"]),
    "a list as key": ("? [a, b]\n: 1\n" + GOOD, ["YAML"]),
    "a number as key": (GOOD + "3: 4\n", ["3"]),
    "an impossible date": (GOOD + "seed: 2001-99-99\n", ["YAML"]),
    "a number of 5000 digits": (GOOD + "seed: " + "9" * 5000 + "\n", ["recipe"]),
    "bad base64": (GOOD + "seed: !!binary '%'\n", ["recipe"]),
    "control characters": (GOOD + "seed: \x07\n", ["YAML"]),
    "nested too deeply": ("a: " + "[" * 3000, ["YAML"]),
    "method missing": ("base_model: base\n" + MODELS, ["merge_method", "missing"]),
    "method unknown": ("merge_method: model_stok\nbase_model: base\n" + MODELS, ["'model_stok'", "mean model_stock?"]),
    "method a list": ("merge_method: [a]\nbase_model: base\n" + MODELS, ["merge_method", "string"]),
    "models missing": (HEAD, ["models", "missing"]),
    "models empty": (HEAD + "models: []\n", ["models"]),
    "models a word": (HEAD + "models: a\n", ["models"]),
    "models of words": (HEAD + "models: [a, b]\n", ["models.0"]),
    "models of nothing": (HEAD + "models: [null]\n", ["models.0"]),
    "models without model": (HEAD + "models: [{parameters: {}}]\n", ["models.0.model", "missing"]),
    "a model of parts": (HEAD + "models: [{model: {path: a}}, {model: b}]\n", ["models.0.model"]),
    "one model": (HEAD + "models: [{model: a}]\n", ["model_stock", "2 or more", "wise_ft"]),
    "no base": ("merge_method: model_stock\n" + MODELS, ["base", "base_model"]),
    "unknown key": (GOOD + "base_modle: a\n", ["'base_modle'", "mean base_model?"]),
    "unknown key far from all": (GOOD + "zzz: a\n", ["'zzz'", "known:", "merge_method"]),
    "unknown key of a model": (
        HEAD + "models: [{model: a, weigth: 1}, {model: b}]\n",
        ["models.0.weigth", "parameters"],
    ),
    "unknown policy": (GOOD + "policies: {mising: first}\n", ["policies.mising", "mean missing?"]),
    "unknown parameter": (GOOD + "parameters: {negativ: clamp}\n", ["'negativ'", "mean negative?"]),
    "unknown parameter of a model": (
        "merge_method: linear\nmodels: [{model: a, parameters: {weigth: 1}}, {model: b}]\n",
        ["'weigth'", "weight"],
    ),
    "weight missing": ("merge_method: linear\n" + MODELS, ["weight", "linear", "model a"]),
    "weight of a word": ("merge_method: linear\nmodels: [{model: a, parameters: {weight: x}}]\n", ["weight", "'x'"]),
    "a gradient": (
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: [0, 1]}}]\n",
        ["weight", "not served"],
    ),
    "a filter": (
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: [{filter: norm, value: 1}]}}]\n",
        ["weight", "not served"],
    ),
    "policy of another word": (GOOD + "policies: {missing: mean}\n", ["policies.missing", "'mean'", "average"]),
    "policies a list": (GOOD + "policies: [only]\n", ["policies"]),
    "only a number": (GOOD + "policies: {only: [3]}\n", ["policies.only"]),
    "only broken": (GOOD + "policies: {only: '['}\n", ["--only", "regular expression"]),
    "only matches nothing": (GOOD + "policies: {only: embed}\n", ["'embed'", "matches no tensor"]),
    "rename broken": (GOOD + "policies: {rename: ['(=x']}\n", ["--rename", "regular expression"]),
    "dtype unknown": (GOOD + "dtype: int8\n", ["dtype", "'int8'", "float32"]),
    "out_dtype unknown": (GOOD + "out_dtype: half\n", ["out_dtype", "'half'", "float16"]),
    "granularity unknown": (GOOD + "granularity: rows\n", ["'rows'", "mean row?"]),
    "granularity a number": (GOOD + "granularity: 3\n", ["granularity"]),
    "seed a word": (GOOD + "seed: x\n", ["seed", "'x'"]),
    "shard size a word": (GOOD + "shard_size: big\n", ["size", "'big'"]),
    "nonfinite a number": (GOOD + "allow_nonfinite: 7\n", ["allow_nonfinite"]),
    "base nowhere": (GOOD.replace("base_model: base", "base_model: ./nowhere"), ["no such", "./nowhere"]),
    "slices": (HEAD + "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n", ["slices", "not served"]),
    "slices beside models": (GOOD + "slices: []\n", ["slices", "not served"]),
    "modules": (HEAD + "modules: {text: {models: []}}\n", ["modules", "not served"]),
    "tokenizer": (GOOD + "tokenizer: {sorce: union}\n", ["tokenizer.sorce", "did you mean source?"]),
    "tokenizer_source": (GOOD + "tokenizer_source: union\ntokenizer: {}\n", ["tokenizer_source exclude each other"]),
    "chat_template": (GOOD + "chat_template: chatmll\n", ["chat_template", "did you mean chatml?"]),
    "aliases in a circle": (GOOD + "parameters: &a {x: *a}\n", ["recipe"]),
}
KINDS = {
    "method unknown": "unknown_name",
    "one model": "method",
    "no base": "usage",
    "unknown parameter": "unknown_name",
    "unknown parameter of a model": "unknown_name",
    "weight of a word": "parameter",
    "only broken": "parameter",
    "only matches nothing": "usage",
    "rename broken": "parameter",
    "granularity unknown": "unknown_name",
    "shard size a word": "parameter",
    "base nowhere": "not_found",
}


def written(kitchen: Kitchen, text: str | bytes) -> Path:
    """A recipe file in the current folder."""
    path = kitchen.root / "recipe.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_recipe_that_these_vary_is_good(program: Program, kitchen: Kitchen) -> None:
    """The recipe itself is merged."""
    written(kitchen, GOOD)
    program.does("merge", "recipe.yaml", "--out", "out")


@pytest.mark.parametrize("case", RECIPES)
def test_recipe_is_refused(case: str, program: Program, kitchen: Kitchen) -> None:
    """A recipe that is wrong is refused with what is wrong in it, before anything is written."""
    text, says = RECIPES[case]
    written(kitchen, text)
    kind = KINDS.get(case, "recipe")
    says = says if kind != "recipe" or case == "weight missing" else ["recipe.yaml", *says]
    program.refuses("merge", "recipe.yaml", "--out", "out", kind=kind, says=says)


CODE: dict[str, str] = {
    "apply": "!!python/object/apply:os.system ['touch mark']",
    "apply in a map": "{a: !!python/object/apply:os.system ['touch mark']}",
    "new": "!!python/object/new:os.system ['touch mark']",
    "name": "!!python/name:os.system",
    "module": "!!python/module:os",
    "object": "!!python/object:subprocess.Popen {args: 'touch mark'}",
    "long tag": "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch mark']",
    "tuple": "!!python/tuple [1, 2]",
}


@pytest.mark.parametrize("case", CODE)
@pytest.mark.parametrize("place", ["seed: ", "parameters: {negative: %}", "merge_method: ", "whole", "key"])
def test_recipe_with_code(case: str, place: str, program: Program, kitchen: Kitchen) -> None:
    """A recipe that asks for code is refused with the line, and the code is not run."""
    code = CODE[case]
    if place == "whole":
        text = code
    elif place == "key":
        text = f"? {code}\n: 1\n"
    elif "%" in place:
        text = GOOD + place.replace("%", code) + "\n"
    else:
        text = (GOOD.split("\n", 1)[1] if place == "merge_method: " else GOOD) + place + code + "\n"
    written(kitchen, text)
    program.refuses("merge", "recipe.yaml", "--out", "out", kind="recipe", says=["recipe.yaml", "YAML", "line"])
    assert not (kitchen.root / "mark").exists()


def bomb(levels: int, width: int) -> str:
    """Lists of aliases of lists: width ** levels values."""
    lines = ["l0: &l0 [x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n" + GOOD


def map_bomb(levels: int, width: int) -> str:
    """The same with maps as values."""
    lines = ["l0: &l0 {x: y}"]
    lines += [f"l{n}: &l{n} {{{', '.join(f'k{i}: *l{n - 1}' for i in range(width))}}}" for n in range(1, levels)]
    return "\n".join(lines) + "\n" + GOOD


def merge_bomb(levels: int, width: int) -> str:
    """The same with merge keys, which a loader copies before it counts."""
    lines = ["l0: &l0 {x: y}"]
    lines += [f"l{n}: &l{n} {{<<: [{', '.join([f'*l{n - 1}'] * width)}]}}" for n in range(1, levels)]
    return "\n".join(lines) + "\n" + GOOD


BOMBS: dict[str, str] = {
    "aliases": bomb(30, 9),
    "aliases of maps": map_bomb(30, 9),
    "merge keys": merge_bomb(12, 9),
    "aliases as a key": bomb(30, 9) + "? *l29\n: 1\n",
    "aliases in a wrong place": bomb(30, 9) + "seed: *l29\n",
    "aliases in a model": bomb(30, 9).replace("  - model: a", "  - model: *l29"),
    "long": "# " + "x" * (5 << 20) + "\n" + GOOD,
}


@pytest.mark.parametrize("case", BOMBS)
def test_recipe_bomb(case: str, kitchen: Kitchen) -> None:
    """A small recipe that would expand to billions of values is refused at once, in little memory."""
    written(kitchen, BOMBS[case])
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (5, 5))\n"
        "from stockpot.cli import main\n"
        "raise SystemExit(main(['merge', 'recipe.yaml', '--out', 'out']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=20, cwd=kitchen.root
    )
    assert done.returncode >= 0, f"killed by signal {-done.returncode}"
    check_error(Outcome(done.returncode, done.stdout, done.stderr), 2, ["recipe"])
    assert len(done.stderr) < 5000
    assert not kitchen.out.exists()


def test_recipe_that_is_not_there(program: Program, kitchen: Kitchen) -> None:
    """A recipe file that is not there is named."""
    program.refuses(
        "merge", "nowhere.yaml", "--out", kitchen.out, kind="not_found", says=["no such recipe", "nowhere.yaml"]
    )


def test_recipe_that_is_a_folder(program: Program, kitchen: Kitchen) -> None:
    """A folder is no recipe."""
    (kitchen.root / "folder.yaml").mkdir()
    program.refuses("merge", "folder.yaml", "--out", kitchen.out, kind="recipe", says=["folder.yaml"])


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"merge_method: \xff\n", GOOD.encode("utf-16")])
def test_recipe_that_is_not_utf8(content: bytes, program: Program, kitchen: Kitchen) -> None:
    """A recipe in another encoding is refused as such."""
    written(kitchen, content)
    program.refuses("merge", "recipe.yaml", "--out", "out", kind="recipe", says=["recipe.yaml", "UTF-8"])


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf" + GOOD.encode(), GOOD.replace("\n", "\r\n").encode(), GOOD.rstrip().encode()]
)
def test_recipe_as_editors_write_it(content: bytes, program: Program, kitchen: Kitchen) -> None:
    """A byte order mark, Windows line ends and a missing last newline are read."""
    written(kitchen, content)
    program.does("merge", "recipe.yaml", "--out", "out")


def test_every_problem_is_listed(program: Program, kitchen: Kitchen) -> None:
    """Several wrong keys come in one refusal."""
    written(kitchen, GOOD + "aa: 1\nbb: 2\nslices: []\ndtype: int8\n")
    outcome = program.refuses("merge", "recipe.yaml", "--out", "out", kind="recipe", says=["recipe.yaml"])
    text = "\n".join([outcome.first, *outcome.problems])
    for word in ("'aa'", "'bb'", "slices", "int8"):
        assert word in text


def test_twenty_wrong_keys_are_counted(program: Program, kitchen: Kitchen) -> None:
    """Of many problems ten follow the first line, and the rest are counted."""
    written(kitchen, GOOD + "".join(f"zz{n:02d}: 1\n" for n in range(20)))
    outcome = program.refuses("merge", "recipe.yaml", "--out", "out", kind="recipe", says=["zz00"])
    assert outcome.problems[-1] == "  and 9 more"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["recipe.yaml", "a"], ["method", "recipe"]),
        (["recipe.yaml", "--base", "base"], ["--base", "recipe", "base_model"]),
        (["recipe.yaml", "--set", "negative=no"], ["negative"]),
        (["recipe.yaml", "--set", "weight=[1,2,3]"], ["weight", "expected 2 values", "got 3"]),
        (["recipe.yaml", "--granularity", "rwo"], ["'rwo'"]),
        (["recipe.yaml", "--dtype", "int8"], ["int8"]),
        (["recipe.yaml", "--only", "("], ["--only"]),
    ],
)
def test_options_beside_a_recipe(arguments: list[str], says: list[str], program: Program, kitchen: Kitchen) -> None:
    """Options that do not go with a recipe, or override it with something wrong, are refused."""
    written(kitchen, GOOD)
    outcome = program("merge", *arguments, "--out", "out")
    check_error(outcome, 2, says)
    assert not kitchen.out.exists()


def test_parameter_of_another_method_is_a_warning(program: Program, kitchen: Kitchen) -> None:
    """Recipes in the wild carry parameters of other methods: said, and without effect."""
    written(kitchen, GOOD + "parameters: {density: 0.5, int8_mask: true}\n")
    outcome = program.does("merge", "recipe.yaml", "--out", "out", "--json")
    assert any("density" in warning for warning in outcome.data["warnings"])
    assert any("int8_mask" in warning for warning in outcome.data["warnings"])
    assert len(load(kitchen.out)) == 3


def test_numbers_as_the_field_writes_them(program: Program, kitchen: Kitchen) -> None:
    """``1e-1`` in a recipe is a number."""
    weights = "[{model: a, parameters: {weight: 1e-1}}, {model: b, parameters: {weight: 9.0e-1}}]"
    text = f"merge_method: linear\nmodels: {weights}\n"
    written(kitchen, text)
    program.does("merge", "recipe.yaml", "--out", "out")
