"""``stockpot landscape`` and ``stockpot barrier`` as they are typed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ._judges import Judge
from ._kitchen import Kitchen, Program, save, snapshot


def plane(kitchen: Kitchen, evaluator: str, *more: str) -> list[str]:
    """A small landscape."""
    head = ["landscape", "--base", str(kitchen.base), str(kitchen.a), str(kitchen.b), "--evaluate", evaluator]
    return [*head, "--grid", "3", "--steps", "3", *more]


def test_a_table_and_sentences(program: Program, kitchen: Kitchen, judge: Judge) -> None:
    """Points in a table, the whole in words; nothing is written; what the evaluator prints is not on stdout."""
    before = snapshot(kitchen.root)
    outcome = program.does(*plane(kitchen, judge("judged"), "--select", "loss:min"))
    for word in (
        "point",
        "base",
        "Model Stock",
        "mean",
        "loss (less is better)",
        "best fine-tune",
        "barrier",
        "best point",
    ):
        assert word in outcome.out
    assert "evaluating" not in outcome.out
    assert "evaluating" in outcome.err
    assert snapshot(kitchen.root) == before


def test_one_object(program: Program, kitchen: Kitchen, judge: Judge) -> None:
    """``--json`` has points, lines and the plane; the same command evaluates nothing again."""
    found = program.does(*plane(kitchen, judge("judged"), "--select", "loss:min", "--json", "--quiet")).data
    assert (found["command"], found["status"], found["metric"], found["direction"]) == (
        "landscape",
        "done",
        "loss",
        "min",
    )
    assert [point["sort"] for point in found["points"]] == ["base", "model", "model", "mean", "model_stock"]
    assert [len(found["plane"]["values"]["loss"]), len(found["plane"]["xs"])] == [3, 3]
    assert len(found["lines"]) == 4
    asked = judge.asked
    assert asked == found["evaluated"] == 5 + 3 + 9  # the mean is the middle of its two models
    again = program.does(*plane(kitchen, judge("judged"), "--select", "accuracy", "--json", "--quiet")).data
    assert (again["evaluated"], judge.asked, again["metric"]) == (0, asked, "accuracy")


def test_barriers(program: Program, kitchen: Kitchen, judge: Judge) -> None:
    """All pairs; results of a landscape serve here too."""
    program.does(*plane(kitchen, judge("one"), "--limit", "5"))
    asked = judge.asked
    line = ["barrier", kitchen.a, kitchen.b, "--evaluate", judge("one"), "--steps", "3", "--limit", "5"]
    found = program.does(*line, "--json").data
    assert (found["evaluated"], judge.asked) == (0, asked)
    assert found["lines"][0]["angle_degrees"] is None
    outcome = program.does(*line, "--base", kitchen.base)
    for word in ("advantage", "angle (degrees)", "barrier", "the middle of two"):
        assert word in outcome.out
    program.does("barrier", kitchen.a, kitchen.b, kitchen.base, "--evaluate", judge("one"), "--steps", "3")
    assert judge.asked > asked  # without --limit it is another evaluation


def test_files(program: Program, kitchen: Kitchen, judge: Judge, tmp_path: Path) -> None:
    """Report, figures and numbers; the same bytes each time, none of them evaluated again."""
    made = []
    for _ in range(2):
        words = ["--html", "l.html", "--figures", "pictures", "--json-out", "l.json", "--select", "loss:min"]
        program.does(*plane(kitchen, judge("judged"), *words))
        files = [Path("l.html"), *sorted(Path("pictures").iterdir())]
        made.append([file.read_bytes() for file in files])
    assert made[0] == made[1]
    assert sorted(file.name for file in Path("pictures").iterdir()) == [
        f"{name}.{kind}" for name in ("lines", "plane") for kind in ("json", "pdf", "png", "svg")
    ]
    assert json.loads(Path("l.json").read_text())["plane"]["through"] == [
        str(kitchen.base),
        str(kitchen.a),
        str(kitchen.b),
    ]


def test_evaluators_of_paths(
    program: Program,
    kitchen: Kitchen,
    judge: Judge,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Mixtures are written to a temporary folder, side files and all, and taken away again; the numbers are equal."""
    place = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(place))
    found = [
        program.does(*plane(kitchen, judge(name), "--select", "loss:min", "--json", "--quiet")).data
        for name in ("path", "judged")
    ]
    assert found[0]["points"] == found[1]["points"]
    assert found[0]["plane"] == found[1]["plane"]
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("evaluator", "more", "kind", "says"),
    [
        ("raises", (), "evaluator", ["failed (KeyError: 'labels') on ", "base", "judge.py:raises"]),
        ("hangs", ("--timeout", "0.3"), "evaluator", ["took too long on ", "expected at most 0.3 s"]),
        ("nan", (), "evaluator", ["no score on ", "got NaN"]),
        ("word", (), "evaluator", ["no score on ", "got str 'good'"]),
        ("shifty", (), "evaluator", ["other names on ", "expected a, got b"]),
        ("random", ("--check-evaluator",), "evaluator", ["not deterministic: score of "]),
    ],
)
def test_evaluators_that_fail(
    evaluator: str,
    more: tuple[str, ...],
    kind: str,
    says: list[str],
    program: Program,
    kitchen: Kitchen,
    judge: Judge,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit 1 and one line: what, on which model, by which evaluator."""
    if evaluator in ("shifty", "random"):  # these print as they are asked; the law of one line is about ours
        outcome = program(*plane(kitchen, judge(evaluator), *more))
        assert outcome.code == 1
        line = next(line for line in outcome.err.splitlines() if line.startswith("stockpot: error"))
        assert all(word in line for word in says), line
        return
    program.fails(*plane(kitchen, judge(evaluator), *more), kind=kind, says=says, command="landscape")


@pytest.mark.parametrize(
    ("more", "kind", "says"),
    [
        (["--select", "los"], "unknown_name", ["unknown metric 'los'", "did you mean loss"]),
        ([], "usage", ["several numbers", "--select loss"]),
        (["--grid", "1"], "parameter", ["grid of a landscape", "got 1"]),
        (["--steps", "4"], "parameter", ["odd number", "got 4"]),
        (["--plane", "0,1"], "parameter", ["--plane cannot be read"]),
        (["--plane", "0,1,5"], "parameter", ["three of 0 (the base) to 2"]),
        (["--html", "no/such/place.html"], "output", ["no such folder"]),
        (["--limit", "3"], "usage", ["takes no limit"]),
        (["--centre", "nowhere"], "not_found", ["no such file", "nowhere"]),
        (["--only", "nothing-at-all"], "usage", ["matches no"]),
    ],
)
def test_refusals(
    more: list[str], kind: str, says: list[str], program: Program, kitchen: Kitchen, judge: Judge
) -> None:
    """Exit 2 and one line."""
    outcome = program(*plane(kitchen, judge("judged"), *more, "--json"))
    assert outcome.code == 2, outcome.err
    assert outcome.data["error"]["kind"] == kind
    assert all(word in outcome.data["error"]["message"] for word in says), outcome.data["error"]["message"]


def test_models_that_are_others(program: Program, kitchen: Kitchen, judge: Judge) -> None:
    """Another architecture, the base among the models, a model twice: told before anything is evaluated."""
    import torch

    save({"other.weight": torch.ones(3)}, kitchen.root / "c")
    line = ["barrier", kitchen.a, kitchen.root / "c", "--evaluate", judge("one")]
    program.refuses(*line, "--base", kitchen.base, kind="missing_tensor", says=["other"], command="barrier")
    program.refuses(
        "barrier", kitchen.a, kitchen.a, "--evaluate", judge("one"), kind="usage", says=["twice"], command="barrier"
    )
    twice = ["barrier", kitchen.a, kitchen.base, "--base", kitchen.base, "--evaluate", judge("one")]
    program.refuses(*twice, kind="usage", says=["base is also listed"], command="barrier")
    assert judge.asked == 0


def test_weights_written_in_place_are_seen(program: Program, kitchen: Kitchen, judge: Judge) -> None:
    """Other bytes in the same file with the old size and time: evaluated anew."""
    line = [
        "barrier",
        kitchen.a,
        kitchen.b,
        "--evaluate",
        judge("judged"),
        "--select",
        "loss:min",
        "--steps",
        "3",
        "--json",
    ]
    first = program.does(*line).data
    file = kitchen.a / "model.safetensors"
    times = file.stat()
    other = (kitchen.base / "model.safetensors").read_bytes()
    with file.open("r+b") as stream:
        stream.write(other)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    second = program.does(*line).data
    assert second["evaluated"] == 2
    assert second["lines"][0]["scores"] != first["lines"][0]["scores"]


def test_copies_are_known(program: Program, kitchen: Kitchen, judge: Judge) -> None:
    """The same weights at another place, judged by the same file elsewhere: nothing is evaluated."""
    program.does("evaluate", kitchen.a, "--evaluate", judge("one"))
    shutil.copytree(kitchen.a, kitchen.root / "copy")
    shutil.copy(judge.file, kitchen.root / "judge.py")
    found = program.does("evaluate", kitchen.root / "copy", "--evaluate", "judge.py:one", "--json").data
    assert (found["evaluated"], found["known"]) == (0, 1)
    judge.file.write_text(judge.file.read_text() + "# another\n")
    assert program.does("evaluate", kitchen.a, "--evaluate", judge("one"), "--json").data["evaluated"] == 1


def test_the_cache_is_shown_and_cleared(program: Program, kitchen: Kitchen, judge: Judge) -> None:
    """What was scored by what; then nothing."""
    program.does("evaluate", kitchen.a, kitchen.b, "--evaluate", judge("one"))
    shown = program.does("cache").out
    assert str(kitchen.a) in shown
    assert "score 0." in shown
    (first, _) = program.does("cache", "--json").data["results"]
    assert (first["label"], first["logits"]) == (str(kitchen.a), False)
    assert program.does("cache", "--clear", "--json").data["forgotten"] == 2
    assert program.does("cache", "--json").data["results"] == []


def test_names_are_only_names(program: Program, kitchen: Kitchen, judge: Judge) -> None:
    """Dollars are no formulas, brackets no markup; long names are cut in figures, not in tables."""
    odd = kitchen.root / "cost$a_$b [v1]"
    long = kitchen.root / ("a very long name of a run, fine-tuned with every setting that there is " * 2)
    kitchen.a.rename(odd)
    kitchen.b.rename(long)
    words = ["--select", "loss:min", "--grid", "2", "--steps", "3", "--html", "l.html", "--figures", "pictures"]
    outcome = program.does("landscape", "--base", kitchen.base, odd, long, "--evaluate", judge("judged"), *words)
    assert "cost$a_$b [v1]" in outcome.out
    assert "cost$a_$b [v1]" in Path("l.html").read_text()


def test_what_other_programs_print_is_not_on_stdout(kitchen: Kitchen, judge: Judge) -> None:
    """Neither what a process of the evaluator's writes, nor what it writes to the descriptor itself."""
    judge.file.write_text(
        "import os\ndef loud(weights):\n    os.write(1, b'raw')\n    os.system('echo loud')\n    return 1.0\n"
    )
    words = ["evaluate", str(kitchen.a), "--evaluate", judge("loud"), "--json"]
    done = subprocess.run([sys.executable, "-m", "stockpot", *words], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["evaluated"] == 1
    assert "raw" in done.stderr
    assert "loud" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--html", "."], "a folder is in the way"),
        (["--json-out", "pictures"], "a folder is in the way"),
        (["--figures", "a.txt"], "a file is in the way"),
        (["--timeout", "-1"], "--timeout of an evaluator"),
        (["--limit", "0"], "--limit of an evaluator"),
    ],
)
def test_told_before_anything_is_evaluated(
    words: list[str], says: str, program: Program, kitchen: Kitchen, judge: Judge
) -> None:
    """Places that cannot be written, bounds that make no sense."""
    Path("pictures").mkdir()
    Path("a.txt").write_text("mine")
    outcome = program(*plane(kitchen, judge("judged"), "--select", "loss:min", *words))
    assert outcome.code == 2
    assert says in outcome.first
    assert judge.asked == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_and_gone_on(number: int, kitchen: Kitchen, judge: Judge) -> None:
    """A run that is stopped half-way goes on: in all, every point is evaluated once."""
    words = plane(kitchen, judge("slowly"), "--select", "loss:min", "--grid", "6", "--json")
    command = [sys.executable, "-m", "stockpot", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    deadline = time.monotonic() + 60
    while judge.asked < 12 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), err
    if number == signal.SIGINT:
        assert "the same command goes on from here" in err
        assert json.loads(out)["status"] == "error"
    before = judge.asked
    assert 12 <= before < 44
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout)
    # The one that was under way when it was stopped may have been asked and not yet kept.
    assert before - 1 <= found["known"] <= before
    assert 44 <= judge.asked <= 45
