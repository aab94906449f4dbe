"""Merges that take one another's results: kept, reused, made anew; told in the result's provenance."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.cli._kitchen import Program, snapshot
from tests.safety.test_lies import resum, rewrite

import stockpot
from stockpot import errors
from stockpot.engine import verify

RECIPE = """\
name: half
merge_method: linear
models: [{model: a}, {model: b}]
parameters: {weight: 0.5}
---
merge_method: task_arithmetic
base_model: base
models: [{model: half, parameters: {weight: SHARE}}]
"""
REUSED = "made before by the same job, and whole"


def own_copy(model: Path) -> None:
    """A model of the shelf as a folder that may be changed."""
    shelved = model.resolve()
    model.unlink()
    shutil.copytree(shelved, model)


@pytest.fixture
def recipe(place: Path) -> Path:
    """Two documents."""
    path = place / "two.yaml"
    path.write_text(RECIPE.replace("SHARE", "0.5"))
    return path


def test_a_part_is_reused_by_the_same_job(recipe: Path, program: Program, place: Path) -> None:
    """A second result that needs the same part takes what lies there, byte for byte as it was."""
    assert REUSED not in program.does("merge", recipe, "--out", "out").err
    before = snapshot(place / "out.parts")
    recipe.write_text(RECIPE.replace("SHARE", "0.25"))
    program.does("merge", recipe, "--out", "out", "--overwrite", "--quiet")
    assert snapshot(place / "out.parts") == before
    assert REUSED in program.does("merge", recipe, "--out", "out", "--overwrite").err


@pytest.mark.parametrize(
    "what",
    [
        "recipe",
        "input",
        "input's config",
        "more beside it",
        "weights cut",
        "weights damaged",
        "file more",
        "record gone",
    ],
)
def test_a_part_is_made_anew_where_it_is_another(what: str, recipe: Path, program: Program, place: Path) -> None:
    """Another recipe, another input, or damage: the part is made again, and so is whole."""
    own_copy(place / "a")
    program.does("merge", recipe, "--out", "out")
    half = place / "out.parts" / "half"
    if what == "recipe":
        recipe.write_text(recipe.read_text().replace("{weight: 0.5}\n---", "{weight: [0.5, 0.25]}\n---"))
    elif what == "input":
        content = (place / "b" / "model.safetensors").read_bytes()
        (place / "b").unlink()
        (place / "b").mkdir()
        (place / "b" / "model.safetensors").write_bytes(content[:-4] + b"\0\0\0\0")
    elif what == "input's config":
        rewrite(place / "a" / "config.json", lambda content: content.update(rope_theta=123.0))
    elif what == "more beside it":
        (place / "a" / "notes.json").write_text("{}")
    elif what == "weights damaged":
        weights = half / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-4] ^= 1
        weights.write_bytes(content)
    elif what == "file more":
        (half / "adapter_config.json").write_text("{}")
    elif what == "weights cut":
        weights = half / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4])
    else:
        (half / "stockpot_run.json").unlink()
    assert REUSED not in program.does("merge", recipe, "--out", "out", "--overwrite").err
    assert verify(half, recompute=1.0).problems == ()
    assert verify(place / "out", recompute=1.0).problems == ()


def test_the_result_says_how_its_parts_were_made(recipe: Path, program: Program, place: Path) -> None:
    """The provenance holds the part's recipe and inputs; without the part, deriving anew says what it needs."""
    program.does("merge", recipe, "--out", "out")
    made = json.loads((place / "out" / "stockpot.json").read_text("utf-8"))["made_from"]
    assert [one["ref"] for one in made["out.parts/half"]["inputs"]] == ["a", "b"]
    assert made["out.parts/half"]["recipe"]["merge_method"] == "linear"
    (place / "out.parts").rename(place / "elsewhere")
    assert verify(place / "out").problems == ()
    with pytest.raises(errors.NotFoundError, match=r"made for this merge is gone.*run the same recipe again"):
        verify(place / "out", recompute=1.0)


def test_a_plan_of_all_is_made_without_making_any(recipe: Path, program: Program, place: Path) -> None:
    """``--dry-run`` shows the part's plan and the result's, with what the part will be; nothing is written."""
    before = snapshot(place)
    found = program.does("merge", recipe, "--out", "out", "--dry-run", "--json").data
    assert [one["name"] for one in found["parts"]] == ["half"]
    assert found["tensors"] == found["parts"][0]["tensors"] == 39
    assert "half" in program.does("merge", recipe, "--out", "out", "--dry-run").out
    assert snapshot(place) == before


def test_an_existing_out_is_found_before_parts_are_made(recipe: Path, program: Program, place: Path) -> None:
    """What would stop the result stops the parts."""
    (place / "out").mkdir()
    before = snapshot(place)
    assert program("merge", recipe, "--out", "out").code == 2
    assert snapshot(place) == before


THREE = "name: first\nmerge_method: passthrough\nmodels: [{model: b}]\n---\n" + RECIPE.replace(
    "model: b}", "model: first}"
)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_part_of_someone_else_is_found_before_any_is_made(dry: list[str], program: Program, place: Path) -> None:
    """A folder in the place of the second part stops the first."""
    (place / "three.yaml").write_text(THREE.replace("SHARE", "0.5"))
    (place / "out.parts" / "half").mkdir(parents=True)
    (place / "out.parts" / "half" / "thesis.txt").write_text("years of work")
    before = snapshot(place)
    refused = program("merge", "three.yaml", "--out", "out", *dry)
    assert refused.code == 2
    assert "not made by stockpot" in refused.first
    assert snapshot(place) == before


def test_parts_and_result_fit_the_disk_together(
    recipe: Path, program: Program, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for the larger of them is not room for both; a part that is there needs none."""
    found = program.does("merge", recipe, "--out", "out", "--dry-run", "--json").data
    each = [found["disk_needed_bytes"], found["parts"][0]["disk_needed_bytes"]]
    monkeypatch.setattr("stockpot.engine._merge.disk_free", lambda _: sum(each) - 1)
    before = snapshot(place)
    refused = program("merge", recipe, "--out", "out")
    assert refused.code != 0
    assert f"{sum(each)} bytes free" in refused.first
    assert snapshot(place) == before
    monkeypatch.setattr("stockpot.engine._merge.disk_free", lambda _: sum(each))
    program.does("merge", recipe, "--out", "out")
    monkeypatch.setattr("stockpot.engine._merge.disk_free", lambda _: max(each))
    program.does("merge", recipe, "--out", "out", "--overwrite")


def test_python_takes_the_same_file(recipe: Path, place: Path) -> None:
    """``stockpot.merge`` of a file of documents; one file as OUT has its provenance inside."""
    result = stockpot.merge(recipe, out="one.safetensors")
    assert result.tensors == 39
    assert verify(place / "one.safetensors", recompute=1.0).problems == ()
    assert (place / "one.safetensors.parts" / "half" / "stockpot.json").is_file()


def test_an_adapter_on_a_part(program: Program, place: Path) -> None:
    """A document's result takes an adapter as any model does."""
    text = RECIPE.replace("model: half", "model: half+lora").replace("SHARE", "1.0")
    (place / "two.yaml").write_text(text)
    program.does("check", "two.yaml")
    program.does("merge", "two.yaml", "--out", "out")
    assert verify(place / "out", recompute=1.0).problems == ()


def test_settings_that_lie_are_found(program: Program, place: Path) -> None:
    """Of a recipe that varies, each group's inner products give its coefficients by the recorded parameters alone."""
    text = "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: [0.2, 0.8]}\n"
    (place / "recipe.yaml").write_text(text)
    program.does("merge", "recipe.yaml", "--out", "out")
    assert verify(place / "out").problems == ()
    rewrite(place / "out" / "stockpot.json", lambda content: content["settings"][1].update(t=0.9))
    resum(place / "out")
    assert any("gives other coefficients" in problem for problem in verify(place / "out").problems)
    rewrite(place / "out" / "stockpot.json", lambda content: content["groups"]["model.norm.weight"].update(setting=99))
    resum(place / "out")
    assert any("model.norm.weight has no setting" in problem for problem in verify(place / "out").problems)
