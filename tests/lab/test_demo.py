"""The whole demo, small, and its command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import stockpot
from stockpot import errors, lab
from stockpot.cli.demo import demo
from stockpot.cli.merge import merge
from stockpot.lab._demo import merges_of
from stockpot.lab._network import load_checkpoint

SMALL = lab.DemoSettings(
    seed=3,
    finetunes=2,
    train_digits=20,
    test_digits=60,
    pretraining=lab.Training(steps=15, batch=32, learning_rate=2e-3),
    finetuning=lab.Training(steps=6, batch=8, learning_rate=2e-3),
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the small demo of this file writes."""
    return tmp_path_factory.mktemp("demo") / "a folder"


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What the small demo said while it ran."""
    return []


@pytest.fixture(scope="module")
def report(out: Path, said: list[str]) -> lab.DemoReport:
    """A small demo."""
    return lab.run_demo(out, settings=SMALL, say=said.append)


def _command(function: Callable[..., None]) -> typer.Typer:
    app = typer.Typer()
    app.command()(function)
    return app


def test_the_public_list_is_what_it_says() -> None:
    """Every name in __all__ is there, sorted."""
    assert lab.__all__ == sorted(lab.__all__)
    assert all(hasattr(lab, name) for name in lab.__all__)


def test_the_table_has_every_kind(report: lab.DemoReport) -> None:
    """Two fine-tunes give one pair; accuracies are percentages in order."""
    assert [(row.name, row.checkpoints) for row in report.rows] == [
        ("base, zero-shot", 1),
        ("one fine-tune", 2),
        ("WiSE-FT, half base", 2),
        ("average of 2", 1),
        ("Model Stock of 2", 1),
    ]
    for row in report.rows:
        for found in (row.in_distribution, row.out_of_distribution):
            assert 0 <= found.low <= found.mean <= found.high <= 100
        assert row.out_of_distribution.mean == pytest.approx(sum(row.by_shift.values()) / 6, abs=1e-3)


def test_the_checkpoints_are_there_and_differ(report: lab.DemoReport) -> None:
    """The base, its fine-tunes and their merges are folders that load, no two the same."""
    folders = ["base", "finetune-1", "finetune-2", *(f"merged/{name}" for name in ("wise-ft-1", "wise-ft-2"))]
    folders += ["merged/average-1-2", "merged/model-stock-1-2"]
    found = [load_checkpoint(report.out / folder) for folder in folders]
    assert len({weights["head.weight"].numpy().tobytes() for weights in found}) == len(folders)
    assert all((report.out / folder / "config.json").is_file() for folder in folders)


def test_the_merges_are_what_their_names_say(report: lab.DemoReport) -> None:
    """The average is the mean of the two, WiSE-FT the mean with the base, Model Stock on the way to the average."""
    base, one, two, wise, mean, stock = (
        load_checkpoint(report.out / folder)
        for folder in (
            "base",
            "finetune-1",
            "finetune-2",
            "merged/wise-ft-1",
            "merged/average-1-2",
            "merged/model-stock-1-2",
        )
    )
    for name in base:
        torch.testing.assert_close(mean[name], (one[name] + two[name]) / 2)
        torch.testing.assert_close(wise[name], (one[name] + base[name]) / 2)
        line, moved = (mean[name] - base[name]).flatten().double(), (stock[name] - base[name]).flatten().double()
        t = float(line @ moved / (line @ line))
        assert 0 <= t <= 1
        torch.testing.assert_close(moved, t * line, atol=1e-6, rtol=0)  # weights near 1, stored in fp32
    assert report.ratios.keys() == {"model-stock-1-2"}
    assert 0 <= report.ratios["model-stock-1-2"]["min"] <= report.ratios["model-stock-1-2"]["max"] <= 1


def test_the_fine_tunes_share_their_digits_and_not_their_seed(report: lab.DemoReport) -> None:
    """Their ways from the base differ, and yet point the same way: what Model Stock needs."""
    base, one, two = (load_checkpoint(report.out / folder) for folder in ("base", "finetune-1", "finetune-2"))
    ways = [torch.cat([(tuned[name] - base[name]).flatten() for name in base]) for tuned in (one, two)]
    assert 0.05 < float(torch.cosine_similarity(ways[0], ways[1], dim=0)) < 0.99


def test_the_words_belong_to_the_numbers(report: lab.DemoReport) -> None:
    """The sentences state the Model Stock row's accuracies and compare with what this run has."""
    stock = report.rows[-1]
    plain, shifted = report.findings
    assert plain.startswith(f"In distribution, Model Stock of 2 reads {stock.in_distribution.mean:.1f} %")
    assert shifted.startswith(f"Under shift, Model Stock of 2 reads {stock.out_of_distribution.mean:.1f} %")
    for sentence in report.findings:
        assert "one fine-tune (" in sentence
        assert "the average of 2 (" in sentence


def test_progress_is_told(report: lab.DemoReport, said: list[str]) -> None:
    """Someone who waits hears of each stage."""
    assert report.rows
    for stage in ("pre-training", "fine-tuning on 20 handwritten digits: 2 of 2", "merged", "Model Stock of 2"):
        assert any(stage in line for line in said)


def test_the_folder_says_what_made_it(report: lab.DemoReport) -> None:
    """demo.json holds the whole report."""
    record = json.loads((report.out / "demo.json").read_text(encoding="utf-8"))
    assert (record["command"], record["status"], record["stockpot"]) == ("demo", "done", stockpot.__version__)
    assert {name: record[name] for name in report.record()} == json.loads(json.dumps(report.record()))
    assert record["settings"]["train_digits"] == 20


def test_the_command_in_the_report_repeats_the_merge(report: lab.DemoReport) -> None:
    """Pasted into a shell, also with a space in the path, it writes the same weights."""
    program, verb, *arguments = shlex.split(report.command)
    assert (program, verb) == ("stockpot", "merge")
    result = CliRunner().invoke(_command(merge), arguments)
    assert result.exit_code == 0, result.output
    ours = load_checkpoint(report.out / "by-hand")
    theirs = load_checkpoint(report.out / "merged" / "model-stock-1-2")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_same_seed_gives_the_same_report_in_the_same_folder(report: lab.DemoReport, out: Path) -> None:
    """A demo runs over an earlier one, and equal settings give equal numbers."""
    assert lab.run_demo(out, settings=SMALL) == report


def test_the_merges_of_three_and_of_eight() -> None:
    """Pairs share no fine-tune, an odd one is left out of them, and more than two are merged all together too."""
    three = [(merge.folder, merge.method, merge.members) for merge in merges_of(3) if merge.method != "wise_ft"]
    assert three == [
        ("average-1-2", "linear", (1, 2)),
        ("model-stock-1-2", "model_stock", (1, 2)),
        ("average-1-to-3", "linear", (1, 2, 3)),
        ("model-stock-1-to-3", "model_stock", (1, 2, 3)),
    ]
    eight = [merge for merge in merges_of(8) if merge.row == "Model Stock of 2"]
    assert [merge.members for merge in eight] == [(1, 2), (3, 4), (5, 6), (7, 8)]
    assert list(dict.fromkeys(merge.row for merge in merges_of(8))) == [
        "WiSE-FT, half base",
        "average of 2",
        "Model Stock of 2",
        "average of 8",
        "Model Stock of 8",
    ]


def test_a_folder_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    """Nothing is trained, nothing is written, and the message says what to do."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(errors.OutputExistsError, match="--out"):
        lab.run_demo(tmp_path, settings=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(errors.OutputExistsError, match="a file"):
        lab.run_demo(tmp_path / "thesis.txt", settings=SMALL)


def test_sizes_that_cannot_be_are_refused() -> None:
    """One fine-tune leaves nothing to merge, and there are 1,000 test digits."""
    with pytest.raises(errors.ParameterError, match="at least 2"):
        lab.DemoSettings(finetunes=1)
    for count in (1, 1001):
        with pytest.raises(errors.ParameterError, match="2 to 1,000"):
            lab.DemoSettings(test_digits=count)


@pytest.fixture
def prepared(report: lab.DemoReport, monkeypatch: pytest.MonkeyPatch) -> list[lab.DemoSettings]:
    """The command meets a demo already run; the list gets the settings that it asked for."""
    asked: list[lab.DemoSettings] = []

    def instead(out: Path, *, settings: lab.DemoSettings, say: object) -> lab.DemoReport:
        assert callable(say)
        say("working")
        asked.append(settings)
        return replace(report, out=out)

    monkeypatch.setattr(lab, "run_demo", instead)
    return asked


def test_the_command_prints_table_words_and_the_way_on(
    prepared: list[lab.DemoSettings], report: lab.DemoReport
) -> None:
    """Piped, the output is plain: every row, the sentences whole, the command on a line of its own."""
    result = CliRunner().invoke(_command(demo), ["--out", "there", "--seed", "7"])
    assert result.exit_code == 0, result.output
    assert prepared == [lab.DemoSettings(seed=7)]
    assert "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    for row in report.rows:
        found = next(line for line in lines if line.startswith(f" {row.name}"))
        assert f"{row.in_distribution.mean:.1f}" in found
        assert f"{row.out_of_distribution.mean:.1f}" in found
    assert set(report.findings) <= set(lines)
    assert lines[-1] == report.command
    assert "stockpot: working" in result.stderr


def test_the_command_prints_one_object_with_json(prepared: list[lab.DemoSettings], report: lab.DemoReport) -> None:
    """stdout is one JSON object; progress is on stderr, and with --quiet nowhere."""
    result = CliRunner().invoke(_command(demo), ["--out", "there", "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["command"], found["status"], found["warnings"]) == ("demo", "done", [])
    assert found["stockpot"] == stockpot.__version__
    assert found["out"] == "there"
    assert [row["name"] for row in found["rows"]] == [row.name for row in report.rows]
    assert result.stderr == ""
    assert prepared == [lab.DemoSettings(seed=0)]
