"""The whole demo, small, and its command."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from tests.lab._right import correct
from typer.testing import CliRunner

import stockpot
from stockpot import errors, lab
from stockpot.cli.demo import demo
from stockpot.cli.merge import merge
from stockpot.lab._network import load_checkpoint

SMALL = lab.DemoSettings(
    seed=3,
    finetunes=3,
    rates=(1e-3, 2e-3),
    train_digits=20,
    test_digits=60,
    steps=12,
    batch=8,
    period=4,
    plane=3,
    pretraining=lab.Training(steps=15, batch=32, learning_rate=2e-3),
)
KINDS = [
    "base, zero-shot", "one fine-tune", "best fine-tune, by held-out digits", "average of 2",
    "WiSE-FT, alpha by held-out digits", "ensemble of 2", "Model Stock of 2", "Model Stock of 2, one ratio",
    "average of 3", "ensemble of 3", "Model Stock of 3", "greedy soup of 3", "learned soup of 3",
    "Model Stock while training, of 2", "EMA of one run", "SWA of one run", "greedy soup of 2, all rates",
    "learned soup of 2, all rates",
]  # fmt: skip


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
    """A small demo, with the study of merging while training."""
    return lab.run_demo(out, settings=SMALL, full=True, say=said.append)


def _command(function: Callable[..., None]) -> typer.Typer:
    app = typer.Typer()
    app.command()(function)
    return app


def test_the_public_list_is_what_it_says() -> None:
    """Every name in __all__ is there, sorted."""
    assert lab.__all__ == sorted(lab.__all__)
    assert all(hasattr(lab, name) for name in lab.__all__)


def test_every_kind_at_every_rate(report: lab.DemoReport) -> None:
    """Rows at chosen rates, the table by rate, costs."""
    assert [row["name"] for row in report.rows] == KINDS
    for row in report.rows:
        for metric in ("accuracy", "shifted_accuracy", "held_accuracy"):
            assert 0 <= row["values"][metric]["mean"] <= 100
        assert row["values"]["loss"]["mean"] > 0
        assert row["values"]["loss"]["error"] is None
        assert all(rate in SMALL.rates for rate in row["rates"])
    costs = {row["name"]: (row["fine_tunes"], row["inference"]) for row in report.rows}
    assert costs["base, zero-shot"] == (0, 1)
    assert costs["ensemble of 3"] == (3, 3)
    assert costs["best fine-tune, by held-out digits"] == costs["Model Stock of 3"] == (3, 1)
    assert costs["Model Stock of 2, one ratio"] == costs["Model Stock while training, of 2"] == (2, 1)
    assert costs["EMA of one run"] == costs["one fine-tune"] == (1, 1)
    assert set(report.record["by_rate"]) == set(KINDS[1:-2])
    assert all(set(rates) == {"0.001", "0.002"} for rates in report.record["by_rate"].values())
    assert report.record["shifts"][-1] == "other fonts"
    assert len(report.record["shifts"]) == 7
    assert len(report.record["periods"]) == 7


def test_rates_are_chosen_by_held_out_digits_alone(report: lab.DemoReport) -> None:
    """The row is the one of the table by rate that is best on held-out digits; the loss decides ties."""
    for row in report.rows:
        if row["rates"]:
            rates = report.record["by_rate"][row["name"]]
            best = max(rates, key=lambda rate: rates[rate]["held_accuracy"]["mean"] - rates[rate]["held_loss"]["mean"])
            assert f"{row['rates'][0]:g}" == best
            assert row["values"] == rates[best]


def test_the_checkpoints_are_there_and_differ(report: lab.DemoReport) -> None:
    """The base and its fine-tunes are folders that load, no two the same."""
    folders = ["base", *(f"{top}finetune-{n}" for top in ("", "rate-0.001/") for n in (1, 2, 3))]
    found = [load_checkpoint(report.out / folder) for folder in folders]
    assert len({weights["head.weight"].numpy().tobytes() for weights in found}) == len(folders)
    assert all((report.out / folder / "config.json").is_file() for folder in folders)


def test_accuracies_are_those_of_the_checkpoints(report: lab.DemoReport) -> None:
    """Read again from disk, by the demo's own evaluator and by merging as a user would."""
    from stockpot.lab._digits import load_digits, shifted, split

    test = split(load_digits(), train_count=20, seed=3).test.take(torch.arange(60))
    tuned = [load_checkpoint(report.out / f"finetune-{number}") for number in (1, 2, 3)]
    base = load_checkpoint(report.out / "base")
    values = {kind: rates["0.002"] for kind, rates in report.record["by_rate"].items()}
    mean = 100 * sum(float(correct(one, test).mean()) for one in tuned) / 3
    assert values["one fine-tune"]["accuracy"]["mean"] == pytest.approx(mean, abs=1e-3)
    stock = stockpot.merge_state_dicts("model_stock", base=base, models=tuned)
    assert values["Model Stock of 3"]["accuracy"]["mean"] == pytest.approx(
        100 * float(correct(stock, test).mean()), abs=1e-3
    )
    shifts = [float(correct(stock, one).mean()) for one in shifted(test, seed=3).values()]
    shown = values["Model Stock of 3"]["shifted_accuracy"]["mean"]
    # Six of the seven shifts; the seventh, other fonts, lies between 0 and 100 %.
    assert 100 * sum(shifts) / 7 - 1e-3 <= shown <= 100 * (sum(shifts) + 1) / 7 + 1e-3


def test_the_gallery_is_what_it_says(report: lab.DemoReport) -> None:
    """Distances from the checkpoints; random weights exactly as far away as the fine-tunes."""
    drawn = report.record["gallery"]
    top = report.out if drawn["rate"] == 2e-3 else report.out / "rate-0.001"
    tuned = [load_checkpoint(top / f"finetune-{number}") for number in (1, 2, 3)]
    centre = {name: sum(one[name].double() for one in tuned) / 3 for name in tuned[0]}

    def far(one: dict[str, torch.Tensor]) -> float:
        return math.sqrt(sum(float((one[name].double() - centre[name]).square().sum()) for name in one))

    assert [one["distance"] for one in drawn["finetunes"]] == pytest.approx([far(one) for one in tuned], rel=1e-5)
    assert [one["distance"] for one in drawn["random"]] == pytest.approx([far(one) for one in tuned], rel=1e-4)
    radius = math.sqrt(sum(far(one) ** 2 for one in tuned) / 3)
    assert drawn["means"][0]["theory"] == pytest.approx(radius, rel=1e-5)
    # (w1 + w2) / 2 - c = (c - w3) / 2, for three.
    assert drawn["means"][1]["distance"] == pytest.approx(far(tuned[2]) / 2, rel=1e-4)
    assert drawn["means"][1]["theory"] == pytest.approx(radius / 2, rel=1e-5)
    assert drawn["centre"]["distance"] == pytest.approx(0, abs=1e-5)


def test_the_page_has_words_figures_and_tables(report: lab.DemoReport) -> None:
    """One self-contained file; a warning where there is one repetition."""
    page = (report.out / "report.html").read_text("utf-8")
    assert page.count("<svg") == 5
    assert "One repetition" in page
    assert "Merging two replicas while they train" in page
    for sentence in report.findings:
        assert sentence.split(":")[0] in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page.replace("xlink:href", "")), "nothing comes from elsewhere"


def test_progress_is_told(report: lab.DemoReport, said: list[str]) -> None:
    """Someone who waits hears of each stage."""
    assert any("pre-training" in text for text in said)
    assert any("fine-tuned" in text for text in said)
    assert said[-1] == "drawing the report"


def test_the_record_is_kept(report: lab.DemoReport) -> None:
    """demo.json is the report."""
    kept = json.loads((report.out / "demo.json").read_text("utf-8"))
    assert kept["status"] == "done"
    assert kept["rows"] == json.loads(json.dumps(report.record["rows"]))


def test_the_command_repeats_a_merge(report: lab.DemoReport) -> None:
    """It runs as it stands."""
    words = shlex.split(report.command)
    assert words[:2] == ["stockpot", "merge"]
    result = CliRunner().invoke(_command(merge), words[2:])
    assert result.exit_code == 0, result.output
    base, *tuned = (load_checkpoint(report.out / name) for name in ("base", "finetune-1", "finetune-2"))
    expected = stockpot.merge_state_dicts("model_stock", base=base, models=tuned)
    found = load_checkpoint(report.out / "by-hand")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_second_run_trains_nothing_and_finds_the_same(
    report: lab.DemoReport, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints made in the same way are used again; equal settings give equal numbers."""
    from stockpot.lab import _trial

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(_trial, "train", never)
    again = lab.run_demo(out, settings=SMALL, full=True)
    assert again.record == report.record


def test_a_new_run_elsewhere_finds_the_same(report: lab.DemoReport, tmp_path: Path) -> None:
    """Two runs with one seed on one machine give the same table."""
    again = lab.run_demo(tmp_path / "other", settings=SMALL, full=True)
    for key in ("rows", "by_rate", "periods", "findings", "gallery"):
        assert again.record[key] == report.record[key]


def test_a_damaged_or_other_checkpoint_is_made_again(report: lab.DemoReport, tmp_path: Path) -> None:
    """Half a file, or another seed's."""
    from stockpot.lab._network import kept_checkpoint, save_checkpoint

    weights = load_checkpoint(report.out / "base")
    save_checkpoint(weights, tmp_path, "seed 1")
    assert kept_checkpoint(tmp_path, "seed 1") is not None
    assert kept_checkpoint(tmp_path, "seed 2") is None
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert kept_checkpoint(tmp_path, "seed 1") is None
    assert kept_checkpoint(tmp_path / "nothing", "seed 1") is None


@pytest.mark.slow
def test_repetitions_and_a_vision_transformer(tmp_path: Path) -> None:
    """Each its own base; standard errors in the table; differences over repetitions."""
    tiny = lab.DemoSettings(
        repetitions=2, network="vit", finetunes=2, rates=(1e-3,), train_digits=10, test_digits=30, steps=10, batch=4,
        period=3, plane=2, pretraining=lab.Training(steps=4, batch=16, learning_rate=1e-3),
    )  # fmt: skip
    found = lab.run_demo(tmp_path / "vit", settings=tiny)
    one, two = (load_checkpoint(tmp_path / "vit" / folder) for folder in ("base", "repetition-2/base"))
    assert "embedding.position" in one
    assert not torch.equal(one["head.weight"], two["head.weight"])
    assert all(row["values"]["accuracy"]["error"] is not None for row in found.rows)
    assert "One repetition" not in (tmp_path / "vit" / "report.html").read_text("utf-8")
    assert found.record["flops"] > 1e6
    assert found.record["periods"] == {}


def test_a_folder_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    """Nothing is trained, nothing is written, and the message says what to do."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(errors.OutputExistsError, match="--out"):
        lab.run_demo(tmp_path, settings=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(errors.OutputExistsError, match="a file"):
        lab.run_demo(tmp_path / "thesis.txt", settings=SMALL)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"finetunes": 1}, "at least 2"),
        ({"repetitions": 0}, "at least 1"),
        ({"rates": ()}, "at least 1"),
        ({"test_digits": 1}, "2 to 1,000"),
        ({"test_digits": 1001}, "2 to 1,000"),
        ({"network": "mlp"}, "conv"),
    ],
)
def test_sizes_that_cannot_be_are_refused(given: dict[str, object], message: str) -> None:
    """One fine-tune leaves nothing to merge, and there are 1,000 test digits."""
    with pytest.raises(errors.InputError, match=message):
        lab.DemoSettings(**given)  # type: ignore[arg-type]  # values of several types


@pytest.fixture
def prepared(report: lab.DemoReport, monkeypatch: pytest.MonkeyPatch) -> list[tuple[lab.DemoSettings, bool]]:
    """The command meets a demo already run; the list gets what it asked for."""
    asked: list[tuple[lab.DemoSettings, bool]] = []

    def instead(out: Path, *, settings: lab.DemoSettings, full: bool, say: Callable[[str], None]) -> lab.DemoReport:
        say("working")
        asked.append((settings, full))
        return report

    monkeypatch.setattr(lab, "run_demo", instead)
    return asked


def test_the_command_prints_table_words_and_the_way_on(
    prepared: list[tuple[lab.DemoSettings, bool]], report: lab.DemoReport
) -> None:
    """Piped, the output is plain: every row, the sentences whole, the command on a line of its own."""
    result = CliRunner().invoke(_command(demo), ["--out", "there", "--seed", "7", "--network", "vit"])
    assert result.exit_code == 0, result.output
    assert prepared == [(lab.DemoSettings(seed=7, network="vit"), False)]
    assert "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    for row in report.rows:
        found = next(line for line in lines if line.startswith(f" {row['name']} "))
        assert f"{row['values']['accuracy']['mean']:.1f}" in found
    assert set(report.findings) <= set(lines)
    assert lines[-1] == report.command
    assert "stockpot: working" in result.stderr


def test_the_full_command_prints_one_object_with_json(
    prepared: list[tuple[lab.DemoSettings, bool]], report: lab.DemoReport
) -> None:
    """Five repetitions; stdout is one JSON object; progress is nowhere with --quiet."""
    result = CliRunner().invoke(_command(demo), ["--full", "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["command"], found["status"], found["warnings"]) == ("demo", "done", [])
    assert [row["name"] for row in found["rows"]] == KINDS
    assert result.stderr == ""
    assert prepared == [(lab.DemoSettings(repetitions=5), True)]
