"""Where another tool and stockpot differ: ``python scripts/field_differences.py [MERGEKIT-PYTORCH VERSION [CASE ..]]``.

Runs both on the same files and recipes and writes what came out to ``docs/results/mergekit.json`` and into the table of
``docs/mergekit.md``. Their part is asked anew where their program is given (of those cases, or of all), ours always.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.oracles import exact, linear  # noqa: E402

from stockpot.cli import main  # noqa: E402
from stockpot.methods import all_methods  # noqa: E402

PAGE = ROOT / "docs" / "mergekit.md"
RESULTS = ROOT / "docs" / "results" / "mergekit.json"
BEGIN, END = "<!-- differences -->\n", "<!-- end of differences -->\n"
Tensors = dict[str, torch.Tensor]
Runs = list[Tensors | None]
REFUSED = "refused"


@dataclass(frozen=True)
class Case:
    """One question to both: inputs, a recipe, and how the answers are read.

    ``recipe``: the method and its parameters, of which a list is one value for each model; ``models``: the first is the
    base where ``with_base``; ``runs``: how often; ``read``: the outputs (None where it was refused) in words.
    """

    what: str
    recipe: Mapping[str, Any]
    models: Callable[[], list[Tensors]]
    read: Callable[[Runs], str]
    with_base: bool = True
    dtype: str = "float64"
    runs: int = 1


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Seeded normal numbers."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def of(*tensors: torch.Tensor) -> Callable[[], list[Tensors]]:
    """Models of one tensor each."""
    return lambda: [{"w": tensor} for tensor in tensors]


def _value(place: int = 0, digits: int = 4) -> Callable[[Runs], str]:
    """One element of the result."""
    return lambda runs: REFUSED if runs[0] is None else f"{float(runs[0]['w'].flatten()[place]):.{digits}g}"


def _kept(runs: Runs) -> str:
    return REFUSED if runs[0] is None else str(int(torch.count_nonzero(runs[0]["w"])))


def _accepted(runs: Runs) -> str:
    return REFUSED if runs[0] is None else "merged"


FP32 = [(normal(256, 256, seed=0) + 0.05 * n * normal(256, 256, seed=n)).float() for n in range(3)]
BF16 = [model.to(torch.bfloat16) for model in FP32]
ZERO = torch.zeros(4, 5, dtype=torch.float64)
RAMP = torch.arange(1.0, 26.0, dtype=torch.float64)
ONE, TWO = normal(4, 5, seed=11), normal(4, 5, seed=12)
APART = TWO - (0.4 + (TWO * ONE).sum() / (ONE * ONE).sum()) * ONE
ROWS = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64).repeat(40_000, 1)


def _wrong(expected: np.ndarray[Any, Any]) -> Callable[[Runs], str]:
    """The share of elements that are not the correctly rounded value; of two that are as near, either is."""

    def read(runs: Runs) -> str:
        assert runs[0] is not None
        right = exact.rounded(expected, torch.bfloat16)
        found = runs[0]["w"].flatten().double().numpy()
        wrong = int((np.abs(found - expected) > np.abs(right - expected) * (1 + 1e-9)).sum())
        return f"{100 * wrong / right.size:.2g} %" if wrong else "none"

    return read


def _ratio(step: torch.Tensor) -> Callable[[Runs], str]:
    """The result of Model Stock from a base of zero, as a share of the mean step."""
    return lambda runs: REFUSED if runs[0] is None else f"{float((runs[0]['w'] / step).flatten()[0]):.3g}"


def _means(runs: Runs) -> str:
    """Means of the columns over their values: the smallest and the largest of a row."""
    if runs[0] is None:
        return REFUSED
    means = (runs[0]["w"] / ROWS).mean(0)
    return f"{float(means[0]):.2f} and {float(means[-1]):.2f}"


def _same(runs: Runs) -> str:
    if None in runs:
        return REFUSED
    first, second = (one["w"] for one in runs if one is not None)
    return "the same" if torch.equal(first, second) else "others"


CASES = {
    "rounding-linear": Case(
        "mean of three bf16 models, `dtype: bfloat16`: elements that are not the correctly rounded value",
        {"merge_method": "linear", "weight": 1.0},
        of(*BF16),
        _wrong(linear.linear(BF16)),
        with_base=False,
        dtype="bfloat16",
    ),
    "rounding-float32": Case(
        "the same of float32 models",
        {"merge_method": "linear", "weight": 1.0},
        of(*FP32),
        _wrong(linear.linear(FP32)),
        with_base=False,
        dtype="bfloat16",
    ),
    "rounding-task-arithmetic": Case(
        "the same of `task_arithmetic` of bf16 models, weight 0.4",
        {"merge_method": "task_arithmetic", "weight": 0.4},
        of(*BF16),
        _wrong(linear.task_arithmetic(BF16[0], BF16[1:], [0.4, 0.4])),
        dtype="bfloat16",
    ),
    "rounding-slerp": Case(
        "the same of `slerp` of bf16 models, t 0.3",
        {"merge_method": "slerp", "t": 0.3},
        of(*BF16[:2]),
        _wrong(linear.slerp(BF16[0], BF16[1], 0.3)),
        dtype="bfloat16",
    ),
    "mistyped": Case(
        "a parameter `weigth` in a recipe",
        {"merge_method": "linear", "weight": 1.0, "weigth": 2.0},
        of(ONE, TWO),
        _accepted,
        with_base=False,
    ),
    "nan": Case(
        "a NaN in an input",
        {"merge_method": "linear", "weight": 1.0},
        of(torch.full_like(ONE, math.nan), TWO),
        _accepted,
        with_base=False,
    ),
    "zero-sum": Case(
        "`linear`, weights 1 and -1, normalised: an element",
        {"merge_method": "linear", "weight": [1.0, -1.0]},
        of(ONE + 1, ONE),
        _value(),
        with_base=False,
    ),
    "base-of-linear": Case(
        "`linear` with a `base_model` that `models` does not list; base 0, models 1 and 2: the mean",
        {"merge_method": "linear", "weight": 1.0},
        of(ZERO, ZERO + 1, ZERO + 2),
        _value(),
    ),
    "negative-cosine": Case(
        "`model_stock`, mean cosine -0.31: t",
        {"merge_method": "model_stock"},
        of(ZERO, ONE, APART),
        _ratio((ONE + APART) / 2),
    ),
    "small-steps": Case(
        "`model_stock`, steps of 1e-12 whose t is 0.88 at size one: t",
        {"merge_method": "model_stock"},
        of(ZERO, 1e-12 * ONE, 1e-12 * (2 * ONE + APART)),
        _ratio(1e-12 * (3 * ONE + APART) / 2),
    ),
    "kept": Case(
        "`ties`, density 0.7 of 25 elements: kept",
        {"merge_method": "ties", "weight": 1.0, "density": 0.7},
        of(0 * RAMP, RAMP),
        _kept,
    ),
    "kept-few": Case(
        "`ties`, density 0.1 of 3: kept",
        {"merge_method": "ties", "weight": 1.0, "density": 0.1},
        of(0 * RAMP[:3], RAMP[:3]),
        _kept,
    ),
    "density": Case(
        "`ties`, density 1.5",
        {"merge_method": "ties", "weight": 1.0, "density": 1.5},
        of(0 * RAMP, RAMP),
        _accepted,
    ),
    "seeds": Case(
        "`dare_linear` run twice: the masks of the second",
        {"merge_method": "dare_linear", "weight": 1.0, "density": 0.5},
        of(0 * RAMP, RAMP),
        _same,
        runs=2,
    ),
    "della-rescaled": Case(
        "`della_linear`, density 0.5, epsilon 0.2, rescaled: mean of what becomes of a row's smallest and largest step",
        {"merge_method": "della_linear", "weight": 1.0, "density": 0.5, "epsilon": 0.2},
        of(0 * ROWS, ROWS),
        _means,
    ),
    "della-one": Case(
        "`della_linear`, rows of one element",
        {"merge_method": "della_linear", "weight": 1.0, "density": 0.5, "epsilon": 0.2},
        of(0 * ROWS[:, :1].contiguous(), ROWS[:, :1].contiguous()),
        _accepted,
    ),
}


def write_inputs(case: Case, folder: Path) -> Path:
    """Models and recipe, in a folder."""
    names = []
    for number, tensors in enumerate(case.models()):
        names.append(str(folder / f"model{number}.safetensors"))
        safetensors.torch.save_file(tensors, names[-1])
    settings = {name: value for name, value in case.recipe.items() if name != "merge_method"}
    own = {name: value for name, value in settings.items() if isinstance(value, list)}
    models = names[1:] if case.with_base else names
    recipe = {
        "merge_method": case.recipe["merge_method"],
        **({"base_model": names[0]} if case.with_base else {}),
        "models": [
            {"model": model, "parameters": {name: value[n] for name, value in own.items()}}
            for n, model in enumerate(models)
        ],
        "parameters": {name: value for name, value in settings.items() if name not in own},
        "dtype": case.dtype,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    return folder / "recipe.yaml"


def answer(case: Case, run: Callable[[Path, Path], bool]) -> str:
    """What a program makes of a case; ``run(recipe, out)`` says whether it did."""
    found: Runs = []
    with tempfile.TemporaryDirectory() as name:
        recipe = write_inputs(case, Path(name))
        for number in range(case.runs):
            out = Path(name) / f"out{number}"
            found.append(safetensors.torch.load_file(out / "model.safetensors") if run(recipe, out) else None)
        return case.read(found)


def ours(case: Case) -> str | None:
    """Our answer; None where the method is not there."""

    def run(recipe: Path, out: Path) -> bool:
        with contextlib.redirect_stderr(io.StringIO()):
            return main(["merge", str(recipe), "--out", str(out), "--quiet"]) == 0

    return answer(case, run) if case.recipe["merge_method"] in all_methods() else None


def theirs(case: Case, program: str) -> str:
    """Their answer."""

    def run(recipe: Path, out: Path) -> bool:
        return subprocess.run([program, str(recipe), str(out), "--quiet"], capture_output=True).returncode == 0

    return answer(case, run)


def table(found: Mapping[str, Any]) -> str:
    """The rows of the page."""
    lines = [f"| what | {found['program']} {found['version']} | stockpot |", "|---|---|---|"]
    for name, case in CASES.items():
        lines.append(f"| {case.what} | {found['theirs'][name]} | {found['ours'].get(name) or 'not yet'} |")
    return "\n".join(lines) + "\n"


def written(page: str, found: Mapping[str, Any]) -> str:
    """The page with the table in its place."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table(found) + rest[rest.index(END) :]


def update(program: str | None = None, version: str | None = None, *names: str) -> None:
    """Ask again, and write down."""
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {"program": "mergekit"}
    if program:
        asked = {name: theirs(CASES[name], program) for name in names or CASES}
        answers = {**found.get("theirs", {}), **asked}
        found |= {"version": version, "theirs": {name: answers[name] for name in CASES}}
    found["ours"] = {name: said for name, case in CASES.items() if (said := ours(case)) is not None}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    PAGE.write_text(written(PAGE.read_text("utf-8"), found), "utf-8")


if __name__ == "__main__":
    update(*sys.argv[1:])
