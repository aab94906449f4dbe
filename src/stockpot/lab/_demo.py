"""The demo: a base pre-trained on printed digits, fine-tunes on handwritten ones, and merges of them, measured."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import stockpot
from stockpot import report, soups
from stockpot.errors import OutputExistsError
from stockpot.lab._gallery import control_sentence, distance_sentence, gallery
from stockpot.lab._settings import DemoSettings
from stockpot.lab._study import BASE, SUBJECT, Study
from stockpot.lab._trial import Say, Trial

MARKER = "demo.json"
PAGE = "report.html"


@dataclass(frozen=True)
class DemoReport:
    """A finished run. ``record``: all its numbers and words, which are in ``out/demo.json`` too."""

    out: Path
    record: Mapping[str, Any]
    command: str
    """Repeats one of the merges by hand."""

    @property
    def findings(self) -> Sequence[str]:
        """What came out, in words."""
        found: Sequence[str] = self.record["findings"]
        return found

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Every kind of model, at the learning rate that held-out digits choose."""
        found: Sequence[Mapping[str, Any]] = self.record["rows"]
        return found


def run_demo(
    out: Path, *, settings: DemoSettings | None = None, full: bool = False, say: Say | None = None
) -> DemoReport:
    """Train, merge and measure under ``out``.

    Arguments: ``out``, a folder that is new, empty, or an earlier demo's (whose checkpoints are used again where they
    were made in the same way); ``settings``, the sizes and the seed: equal settings give an equal report on one
    machine; ``full``: also what merging while training depends on; ``say`` hears of the progress.
    Returns the report, which is in ``out/demo.json`` and, as a page, in ``out/report.html`` too. ``base`` and
    ``finetune-1``, ... (at the greatest learning rate; the others under ``rate-...``) hold the checkpoints, of further
    repetitions under ``repetition-2``, ...
    Raises ``OutputExistsError`` where ``out`` is something else, ``MissingExtraError`` without scikit-learn,
    matplotlib or jinja2. Cost: about two minutes and 50 MB a repetition on two cores.

    >>> run_demo(Path("stockpot-demo")).findings  # doctest: +SKIP
    """
    settings, say = settings or DemoSettings(), say or _silently
    report.require_drawing()
    _check(out)
    out.mkdir(parents=True, exist_ok=True)
    _write_marker(out, "running", {"settings": asdict(settings)})
    study, periods = Study(settings.finetunes), Study(2)
    folders = [out, *(out / f"repetition-{number}" for number in range(2, settings.repetitions + 1))]
    trials = [
        Trial(folder, settings.seed + number, settings, _numbered(say, number, settings))
        for number, folder in enumerate(folders)
    ]
    for trial in trials:
        study.add(None, {BASE: trial.reader.read(trial.base)})
        for rate in settings.rates:
            study.add(rate, trial.at(rate))
        study.add(None, trial.sweep())
        for rate in settings.rates if full else ():
            periods.add(rate, trial.periods(rate))
    first = trials[0]
    shown = study.chosen_rates(SUBJECT)[0]
    assert shown is not None
    drawn = gallery(first, shown)
    command = _command(out)
    record: dict[str, Any] = {
        "settings": asdict(settings),
        "shifts": list(first.reader.shifts),
        "flops": first.network.flops(),
        "rows": study.rows(),
        "by_rate": study.by_rate(),
        "periods": periods.by_rate(),
        "findings": [*study.findings(), distance_sentence(drawn), control_sentence(drawn)],
        "gallery": drawn,
        "merge_command": command,
        "out": str(out),
    }
    say("drawing the report")
    (out / PAGE).write_text(report.demo_page(record, _more_pictures(first, shown)), "utf-8")
    _write_marker(out, "done", record)
    return DemoReport(out, record, command)


def _more_pictures(trial: Trial, rate: float) -> list[report.Picture]:
    """Angles and norms of all seeds by layer, and the error over the plane of the base and two fine-tunes."""
    folders = [str(trial.folder(rate, number)) for number in range(1, trial.settings.finetunes + 1)]
    base = str(trial.out / "base")
    shape = stockpot.geometry(base=base, models=folders)
    plane = soups.landscape(folders[:2], trial.held, base=base, select="accuracy", grid=trial.settings.plane, steps=3)
    return [*report.geometry_pictures(shape)[:2], *report.landscape_pictures(plane)[:1]]


def _numbered(say: Say, number: int, settings: DemoSettings) -> Say:
    return say if settings.repetitions == 1 else lambda text: say(f"{number + 1} of {settings.repetitions}: {text}")


def _check(out: Path) -> None:
    """Refuse to write where something else is."""
    marker = out / MARKER
    if not out.exists() or (out.is_dir() and (marker.is_file() or not any(out.iterdir()))):
        return
    raise OutputExistsError(
        "the demo writes into a folder of its own", file=str(out), expected=f"none, an empty one, or one with {MARKER}",
        got="a folder of something else" if out.is_dir() else "a file", remedy="choose another with --out",
    )  # fmt: skip


def _write_marker(out: Path, status: str, content: dict[str, Any]) -> None:
    """Say, whole or not at all, that this folder is the demo's, and what it holds."""
    record = {"stockpot": stockpot.__version__, "command": "demo", "status": status, **content}
    fresh = out / f"{MARKER}.new"
    fresh.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(out / MARKER)


def _silently(_text: str) -> None:
    pass


def _command(out: Path) -> str:
    """The command that repeats the first merge of two by hand."""
    inputs = [str(out / name) for name in ("base", "finetune-1", "finetune-2")]
    return shlex.join(
        ["stockpot", "merge", "--method", "model_stock", "--base", *inputs, "--out", str(out / "by-hand")]
    )
