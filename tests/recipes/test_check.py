"""``stockpot check``: what would happen, by layer where that varies; what is tolerated, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli._kitchen import Program, snapshot

import stockpot
from stockpot import errors

GRADIENT = """\
merge_method: slerp
base_model: a
models: [{model: b}]
parameters:
  t: [{filter: self_attn, value: [0, 1]}, {value: 0.5}]
"""
ODD = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1, wieght: 2}\nmerge_methd: x\n"


def written(place: Path, text: str) -> str:
    (place / "recipe.yaml").write_text(text)
    return "recipe.yaml"


def test_table(program: Program, place: Path) -> None:
    """A short table and ``ok``: methods, models, tensors, what each layer gets; nothing is written."""
    before = {**snapshot(place), "recipe.yaml": GRADIENT.encode()}
    outcome = program.does("check", written(place, GRADIENT))
    assert outcome.out.splitlines()[-1] == "ok"
    for words in ("slerp", "39", "t at model.layers.1", "peak memory"):
        assert words in outcome.out
    assert snapshot(place) == before


def test_object(program: Program, place: Path) -> None:
    """``--json``: the same as data; the gradient's values stand by layer."""
    found = program.does("check", written(place, GRADIENT), "--json").data
    assert (found["command"], found["status"]) == ("check", "done")
    (merge,) = found["merges"]
    assert merge["by_layer"]["t"]["model.layers.0"] == [0.5, 0.0]
    assert merge["by_layer"]["t"]["model.layers.3"] == [0.5, 1.0]
    assert merge["by_layer"]["t"]["other"] == [0.5]
    assert [one["ref"] for one in merge["models"]] == ["a", "b"]
    assert merge["peak_memory_bytes"] > 0


def test_lenient(program: Program, place: Path) -> None:
    """What nobody knows is refused, all of it at once; with ``--lenient`` it is a warning, and without effect."""
    refused = program("check", written(place, ODD))
    assert refused.code == 2
    assert "'merge_methd'; did you mean merge_method?" in refused.first
    outcome = program.does("merge", "recipe.yaml", "--out", "out", "--lenient")
    assert "warning: ignored: unknown key 'merge_methd'" in outcome.err
    assert "warning: ignored: unknown parameter of linear 'wieght'" in outcome.err
    with pytest.raises(errors.RecipeError):
        stockpot.plan("recipe.yaml", out="other")
    assert len(stockpot.plan("recipe.yaml", out="other", lenient=True).warnings) == 2


def test_filter_without_effect(program: Program, place: Path) -> None:
    """A filter that no name has is no error, and is said."""
    text = GRADIENT.replace("self_attn", "self_atn")
    assert "the filter 'self_atn' is no part of any tensor's name" in program.does("check", written(place, text)).err


def test_problems_of_every_kind_at_once(program: Program, place: Path) -> None:
    """Parameters, models that are not there and those of other documents stand in one list."""
    text = (
        "name: x\nmerge_method: linear\nmodels: [{model: ./nowhere}, {model: a}]\nparameters: {weigth: 1}\n---\n"
        "merge_method: passthrough\nslices:\n  - sources: [{model: b, layer_range: [0, 9]}]\n---\n"
        "name: y\nmerge_method: passthrough\nmodels: [{model: cut}]\n"
    )
    outcome = program("check", written(place, text))
    assert outcome.code == 2
    told = "\n".join([outcome.first, *outcome.problems])
    for words in ("'weigth'", "./nowhere", "layer_range [0, 9]", "cut/model.safetensors"):
        assert words in told, told
    again = program("check", written(place, text + "dtpye: float32\n"))
    assert again.code == 2
    assert "'dtpye'; did you mean dtype?" in again.first
    for words in ("'weigth'", "./nowhere", "cut/model.safetensors"):
        assert words in "\n".join(again.problems), again.err


@pytest.mark.parametrize("value", ["t=[0, 1]", "t={value: [0, 1]}", "t=[{filter: mlp, value: 0.2}, {value: 0.1}]"])
def test_set_takes_what_a_recipe_takes(value: str, program: Program, place: Path) -> None:
    """``--set`` of a parameter that all models share is a setting like the recipe's: a gradient, or by name."""
    found = program.does("check", written(place, GRADIENT), "--set", value, "--json").data["merges"][0]
    assert len({str(values) for values in found["by_layer"]["t"].values()}) > 1


def test_not_a_recipe(program: Program) -> None:
    """A model is no recipe."""
    assert program("check", "a").code == 2
