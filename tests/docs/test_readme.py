"""The README's commands and code run, as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from stockpot.cli import main
from stockpot.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base and three fine-tunes under the README's names."""
    generator = torch.Generator().manual_seed(0)
    base = {"layer.0.weight": torch.randn(8, 6, generator=generator)}
    shared = torch.randn(8, 6, generator=generator)
    for name in ("base", "fine-tune-1", "fine-tune-2", "fine-tune-3"):
        (tmp_path / name).mkdir()
        noise = torch.zeros(8, 6) if name == "base" else shared + torch.randn(8, 6, generator=generator)
        weight = base["layer.0.weight"] + 0.1 * noise
        safetensors.torch.save_file({"layer.0.weight": weight}, tmp_path / name / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_run_in_order(folder: Path) -> None:
    """Dry run, merge and verify, as shown under "Use", all succeed, and the merge is there."""
    shown = [line[2:] for line in _blocks("console")[1].splitlines() if line.startswith("$ stockpot")]
    assert [shlex.split(line)[1] for line in shown] == ["merge", "merge", "verify"]
    assert [main(shlex.split(line)[1:]) for line in shown] == [0, 0, 0]
    assert (folder / "merged" / "model.safetensors").is_file()


def test_the_first_command_prints_the_line_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The summary line has the form that the README shows, number for number."""
    command, line = _blocks("console")[0].splitlines()[1:3]
    assert main(shlex.split(command)[2:]) == 0
    printed = capsys.readouterr().err.strip().splitlines()[-1]

    def form(text: str) -> str:
        return re.sub(r"[\d.]+( [kMGT]?B)?", "#", text).replace("tensors", "tensor")

    assert form(printed) == form(line)


def test_the_recipe_is_one(folder: Path) -> None:
    """The YAML shown is a recipe, and the command beside it runs it."""
    (text,) = _blocks("yaml")
    assert Recipe.from_yaml(text).merge_method == "model_stock"
    (folder / "recipe.yaml").write_text(text)
    assert main(["merge", "recipe.yaml", "--out", "merged", "--quiet"]) == 0


def test_the_python_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python shown runs as it stands."""
    merging, mixing = _blocks("python")
    model = torch.nn.Linear(2, 2)
    names: dict[str, Any] = {"first": model, "second": model}
    exec(merging, names)
    assert torch.equal(names["weights"]["weight"], model.weight)
    exec(mixing, {"accuracy": lambda weights: -float(weights["layer.0.weight"].norm())})
    assert (folder / "soup-of-two" / "model.safetensors").is_file()
    assert "{" in capsys.readouterr().out


def test_the_soup_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command shown, with an ``eval.py`` beside the models."""
    monkeypatch.setenv("STOCKPOT_CACHE", str(folder / "cache"))
    (folder / "eval.py").write_text("def accuracy(weights): return -float(weights['layer.0.weight'].norm())\n")
    (line,) = _blocks("console")[2].splitlines()
    assert main(shlex.split(line)[2:]) == 0
    assert (folder / "soup" / "stockpot.json").is_file()


def test_links_lead_somewhere() -> None:
    """Every relative link of the README and the docs names a file that is there."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
