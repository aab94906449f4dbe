"""``stockpot soup``, ``wise-ft``, ``evaluate`` and ``ensemble`` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import stockpot

from ._judges import Judge
from ._kitchen import Kitchen, Program, load, save


def soup(kitchen: Kitchen, kind: str, *more: object) -> list[object]:
    """The shortest use."""
    return ["soup", kind, kitchen.a, kitchen.b, "--out", kitchen.out, *more]


def test_uniform_without_an_evaluator(program: Program, kitchen: Kitchen) -> None:
    """The mean of all, nothing evaluated; the same bytes as a linear merge."""
    outcome = program.does(*soup(kitchen, "uniform"))
    assert "uniform soup of 2 models" in outcome.out
    program.does(*kitchen.soup(out=kitchen.root / "merged"))
    for name, tensor in load(kitchen.root / "merged").items():
        assert torch.equal(load(kitchen.out)[name], tensor)


def test_greedy_in_words_and_as_one_object(program: Program, kitchen: Kitchen, judge: Judge) -> None:
    """Candidates and decisions; the object has the decision log, out and counts; a second run evaluates nothing."""
    words = soup(kitchen, "greedy", "--evaluate", judge("judged"), "--select", "loss:min", "--base", kitchen.base)
    outcome = program.does(*words)
    for word in ("candidate", "single", "greedy soup", "Model Stock", "loss", "start", "best single"):
        assert word in outcome.out
    assert judge.asked == 2 + 1 + 1
    found = program.does(*words, "--overwrite", "--json", "--quiet").data
    assert (found["command"], found["status"], found["kind"]) == ("soup", "done", "greedy")
    assert (found["evaluated"], found["known"], judge.asked) == (0, 4, 4)
    assert found["out"] == str(kitchen.out)
    assert next(step["accepted"] for step in found["steps"])
    assert json.loads((kitchen.out / "stockpot.json").read_text())["chosen"]["steps"] == found["steps"]
    assert stockpot.verify(kitchen.out, recompute=1.0).problems == ()


def test_the_recorded_recipe_can_be_run(program: Program, kitchen: Kitchen, judge: Judge) -> None:
    """And makes the same weights."""
    program.does(*soup(kitchen, "uniform"))
    program.does("merge", kitchen.out / "stockpot_recipe.yaml", "--out", kitchen.root / "again")
    for name, tensor in load(kitchen.out).items():
        assert torch.equal(load(kitchen.root / "again")[name], tensor)


def test_report_and_figures(program: Program, kitchen: Kitchen, judge: Judge) -> None:
    """Written where asked; the same bytes each time."""
    words = soup(kitchen, "greedy", "--evaluate", judge("judged"), "--select", "loss:min", "--overwrite")
    made = []
    for _ in range(2):
        program.does(*words, "--html", "s.html", "--figures", "pictures", "--json-out", "s.json")
        made.append([file.read_bytes() for file in [Path("s.html"), *sorted(Path("pictures").iterdir())]])
    assert made[0] == made[1]
    assert sorted({file.stem for file in Path("pictures").iterdir()}) == ["candidates", "search"]
    assert json.loads(Path("s.json").read_text())["metric"] == "loss"


def test_wise_ft_evaluate_ensemble(program: Program, kitchen: Kitchen, judge: Judge) -> None:
    """Tables, sentences and objects."""
    line = ["wise-ft", kitchen.base, kitchen.a, "--evaluate", judge("one"), "--alphas", "0,0.5,1", "--out", kitchen.out]
    assert "best alpha" in program.does(*line).out
    found = program.does(*line, "--overwrite", "--json").data
    assert found["alphas"] == [0.0, 0.5, 1.0]
    assert found["best"] in found["alphas"]
    program.does(
        "merge",
        "--method",
        "wise_ft",
        "--base",
        kitchen.base,
        kitchen.a,
        "--set",
        f"alpha={found['best']}",
        "--out",
        "w",
    )
    assert (kitchen.out / "model.safetensors").read_bytes() == Path("w/model.safetensors").read_bytes()
    rows = program.does("evaluate", kitchen.a, kitchen.b, "--evaluate", judge("judged"), "--json").data["models"]
    assert [row["model"] for row in rows] == [str(kitchen.a), str(kitchen.b)]
    program.fails(
        "ensemble", kitchen.a, kitchen.b, "--evaluate", judge("nan"), kind="evaluator", says=["NaN"], command="ensemble"
    )


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        (["soup", "best", "a", "b"], "unknown_name", ["unknown kind of soup 'best'"]),
        (["soup", "gredy", "a", "b"], "unknown_name", ["did you mean greedy"]),
        (["soup", "greedy", "a", "b"], "usage", ["chosen by evaluation", "--evaluate"]),
        (["soup", "learned", "a", "b"], "usage", ["chosen by evaluation"]),
        (["soup", "greedy", "a", "b", "--evaluate", "EVAL", "--order", "best"], "unknown_name", ["unknown order"]),
        (["soup", "greedy", "a", "b", "--evaluate", "EVAL", "--jobs", "0"], "parameter", ["processes"]),
        (["soup", "greedy", "a", "b", "--evaluate", "EVAL", "--most", "0"], "parameter", ["members at most"]),
        (["soup", "learned", "a", "b", "--evaluate", "EVAL", "--epochs", "0"], "parameter", ["epochs"]),
        (["soup", "learned", "a", "b", "--evaluate", "EVAL"], "usage", ["has no batches"]),
        (["soup", "uniform", "a", "b", "--select", "loss:min"], "usage", ["nothing is evaluated"]),
        (["soup", "greedy", "a", "b", "--evaluate", "EVAL", "--html", "out"], "output", ["two outputs at one place"]),
        (
            ["ensemble", "a", "b", "--evaluate", "EVAL", "--select", "acuracy"],
            "unknown_name",
            ["did you mean accuracy"],
        ),
        (["soup", "greedy", "a", "a", "--evaluate", "EVAL"], "usage", ["twice"]),
        (["soup", "greedy", "a", "nowhere", "--evaluate", "EVAL"], "not_found", ["nowhere"]),
        (["soup", "uniform", "a", "b", "--test", "EVAL"], "usage", ["give --evaluate too"]),
        (["wise-ft", "base", "a", "--evaluate", "EVAL", "--alphas", "0:1"], "parameter", ["--alphas cannot be read"]),
        (["wise-ft", "base", "a", "--evaluate", "EVAL", "--alphas", "0:1:0"], "parameter", ["--alphas cannot be read"]),
        (["wise-ft", "base", "a", "--evaluate", "EVAL", "--alphas", "1:0:0.1"], "parameter", ["--alphas cannot"]),
    ],
)
def test_refusals(
    words: list[str], kind: str, says: list[str], program: Program, kitchen: Kitchen, judge: Judge
) -> None:
    """Exit 2, one line, nothing written, nothing evaluated."""
    line = [judge("one") if word == "EVAL" else word for word in words]
    place = [] if words[0] == "ensemble" else ["--out", kitchen.out]
    program.refuses(*line, *place, kind=kind, says=says, command=words[0])
    assert judge.asked == 0


def test_told_before_anything_is_evaluated(program: Program, kitchen: Kitchen, judge: Judge) -> None:
    """OUT is taken; another architecture."""
    kitchen.out.mkdir()
    (kitchen.out / "thesis.tex").write_text("mine")
    words = soup(kitchen, "greedy", "--evaluate", judge("one"))
    program.refuses(*words, kind="output_exists", says=["out"], command="soup")
    (kitchen.out / "thesis.tex").unlink()
    save({"other.weight": torch.ones(3)}, kitchen.root / "c")
    program.refuses(*words, kitchen.root / "c", kind="missing_tensor", says=["missing"], command="soup")
    assert judge.asked == 0


def test_a_name_that_decides(program: Program, kitchen: Kitchen, judge: Judge) -> None:
    """Several names and none chosen, or a wrong one: told after the first model, and that one is kept."""
    for more, says in (([], "--select"), (["--select", "accurcy"], "did you mean accuracy")):
        outcome = program(*soup(kitchen, "greedy", "--evaluate", judge("judged"), *more))
        assert outcome.code == 2
        assert says in outcome.err
        assert not kitchen.out.exists()
    assert judge.asked == 1
    outcome = program.does(*soup(kitchen, "greedy", "--evaluate", judge("judged"), "--select", "loss"))
    assert "for the least, --select loss:min" in outcome.err
