"""The demo: a base pre-trained on printed digits, fine-tunes on handwritten ones, and merges of them, measured."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import stockpot
from stockpot.errors import OutputExistsError, ParameterError
from stockpot.lab._digits import SHIFTS, TEST_COUNT, Examples, Split, jittered, load_digits, shifted, split
from stockpot.lab._glyphs import GlyphSet, load_glyphs, render
from stockpot.lab._network import Training, Weights, correct, initial_weights, load_checkpoint, save_checkpoint, train
from stockpot.lab._random import stream
from stockpot.lab._report import DemoReport, Scores, findings, make_row

MARKER = "demo.json"
PRETRAINING = Training(steps=450, batch=128, learning_rate=3e-3)
FINETUNING = Training(steps=120, batch=16, learning_rate=2e-3)
"""At half this learning rate single fine-tunes are as good, but agree more, and their merges gain less."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoSettings:
    """The sizes of a run; the defaults were chosen on digits that are neither trained nor tested on."""

    seed: int = 0
    finetunes: int = 8
    train_digits: int = 100
    test_digits: int = TEST_COUNT
    pretraining: Training = PRETRAINING
    finetuning: Training = FINETUNING

    def __post_init__(self) -> None:
        if self.finetunes < 2:
            raise ParameterError("fine-tunes", expected="at least 2", got=self.finetunes)
        if not 2 <= self.test_digits <= TEST_COUNT:
            raise ParameterError("test digits", expected=f"2 to {TEST_COUNT:,}", got=self.test_digits)


@dataclass(frozen=True)
class _Merge:
    """One merge of the demo: its line in the table, its folder, the fine-tunes (from 1) that go in."""

    row: str
    folder: str
    method: str
    members: tuple[int, ...]


def run_demo(out: Path, *, settings: DemoSettings | None = None, say: Say | None = None) -> DemoReport:
    """Train, merge and measure under ``out``.

    Arguments: ``out``, a folder that is new, empty, or an earlier demo's (then overwritten); ``settings``, the sizes
    and the seed: equal settings give an equal report on one machine; ``say`` hears of the progress.
    Returns the report, which is in ``out/demo.json`` too. The folders ``base`` and ``finetune-1``, ... hold the
    checkpoints, ``merged`` the merges of them, each made by ``stockpot.merge``.
    Raises ``OutputExistsError`` where ``out`` is something else, ``MissingExtraError`` without scikit-learn or
    matplotlib. Cost: about 40 seconds on two cores, 35 MB on disk.

    >>> run_demo(Path("stockpot-demo")).findings  # doctest: +SKIP
    """
    settings = settings or DemoSettings()
    say = say or _silently
    _check(out)
    data = split(load_digits(), train_count=settings.train_digits, seed=settings.seed)
    glyphs = load_glyphs()
    out.mkdir(parents=True, exist_ok=True)
    _write_marker(out, "running", {"settings": asdict(settings)})

    _train_models(out, data, glyphs, settings, say)
    merges = merges_of(settings.finetunes)
    ratios = {}
    for merge in merges:
        summary = _merge(out, merge)
        if summary is not None:
            ratios[merge.folder] = summary
    say(f"merged: {len(merges)} times")

    scores = _evaluate(out, merges, data, settings, say)
    averages = {kind: f"the {kind}" for kind in scores if kind.startswith("average")}
    report = DemoReport(
        out=out,
        seed=settings.seed,
        rows=tuple(make_row(name, found, list(SHIFTS)) for name, found in scores.items()),
        findings=findings("Model Stock of 2", scores, {"one fine-tune": "one fine-tune", **averages}),
        ratios=ratios,
        command=_command(out),
    )
    _write_marker(out, "done", {"settings": asdict(settings), **report.record()})
    return report


def _check(out: Path) -> None:
    """Refuse to write where something else is."""
    marker = out / MARKER
    if not out.exists() or (out.is_dir() and (marker.is_file() or not any(out.iterdir()))):
        return
    raise OutputExistsError(
        "the demo writes into a folder of its own", file=str(out), expected=f"none, an empty one, or one with {MARKER}",
        got="a folder of something else" if out.is_dir() else "a file", remedy="choose another with --out",
    )  # fmt: skip


def _write_marker(out: Path, status: str, content: dict[str, object]) -> None:
    """Say, whole or not at all, that this folder is the demo's, and what it holds."""
    record = {"stockpot": stockpot.__version__, "command": "demo", "status": status, **content}
    fresh = out / f"{MARKER}.new"
    fresh.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(out / MARKER)


def _silently(_text: str) -> None:
    pass


def _train_models(out: Path, data: Split, glyphs: GlyphSet, settings: DemoSettings, say: Say) -> None:
    """Write the base and its fine-tunes."""
    drawing = stream(settings.seed, "glyphs")
    base = train(
        initial_weights(stream(settings.seed, "network")),
        (render(glyphs, settings.pretraining.batch, drawing) for _ in range(settings.pretraining.steps)),
        settings.pretraining,
        _progress(say, "pre-training on printed digits", settings.pretraining.steps, 50),
    )
    save_checkpoint(base, out / "base")
    for number in range(1, settings.finetunes + 1):
        save_checkpoint(_fine_tune(base, data.train, settings, number), out / f"finetune-{number}")
        say(f"fine-tuning on {len(data.train)} handwritten digits: {number} of {settings.finetunes} seeds")


def _progress(say: Say, what: str, steps: int, every: int) -> Callable[[int], None]:
    def after_step(step: int) -> None:
        if step % every == 0 or step == steps:
            say(f"{what}: {step} of {steps} steps")

    return after_step


def _fine_tune(base: Weights, examples: Examples, settings: DemoSettings, number: int) -> Weights:
    """One fine-tune: the same digits for all, the order and the jitter of its own."""
    generator = stream(settings.seed, "finetune", number)

    def batches() -> Iterator[Examples]:
        while True:
            batch = examples.take(torch.randint(len(examples), (settings.finetuning.batch,), generator=generator))
            yield Examples(jittered(batch.images, generator), batch.labels)

    return train(base, batches(), settings.finetuning)


def merges_of(finetunes: int) -> list[_Merge]:
    """Every merge: of the base with each one, of disjoint pairs, of all."""
    everyone = tuple(range(1, finetunes + 1))
    pairs = list(zip(everyone[::2], everyone[1::2], strict=False))
    kinds = (("average", "linear"), ("Model Stock", "model_stock"))
    merges = [_Merge("WiSE-FT, half base", f"wise-ft-{number}", "wise_ft", (number,)) for number in everyone]
    for title, method in kinds:
        merges += [_Merge(f"{title} of 2", f"{_slug(title)}-{a}-{b}", method, (a, b)) for a, b in pairs]
    if finetunes > 2:
        name = f"1-to-{finetunes}"
        merges += [
            _Merge(f"{title} of {finetunes}", f"{_slug(title)}-{name}", method, everyone) for title, method in kinds
        ]
    return merges


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-")


def _merge(out: Path, merge: _Merge) -> dict[str, float | int] | None:
    """Do one, as a user would; returns how far from the base it went, where the method says so."""
    result = stockpot.merge(
        merge.method,
        base=None if merge.method == "linear" else out / "base",
        models=[out / f"finetune-{number}" for number in merge.members],
        out=out / "merged" / merge.folder,
        overwrite=True,
    )
    return None if result.ratio is None else result.ratio.data()


def _evaluate(out: Path, merges: Sequence[_Merge], data: Split, settings: DemoSettings, say: Say) -> dict[str, Scores]:
    """The scores of every checkpoint on disk, by kind, in the order of the table."""
    folders = {"base, zero-shot": [out / "base"]}
    folders["one fine-tune"] = [out / f"finetune-{number}" for number in range(1, settings.finetunes + 1)]
    for merge in merges:
        folders.setdefault(merge.row, []).append(out / "merged" / merge.folder)
    plain = data.test.take(torch.arange(settings.test_digits))
    tests = [plain, *shifted(plain, seed=settings.seed).values()]
    scores = {}
    for kind, paths in folders.items():
        found = torch.stack([torch.stack([correct(load_checkpoint(path), test) for test in tests]) for path in paths])
        scores[kind] = Scores(plain=found[:, 0], shifted=found[:, 1:])
        say(f"tested on {len(plain):,} digits: {kind}")
    return scores


def _command(out: Path) -> str:
    """The command that repeats the first merge of two by hand."""
    inputs = [str(out / name) for name in ("base", "finetune-1", "finetune-2")]
    return shlex.join(
        ["stockpot", "merge", "--method", "model_stock", "--base", *inputs, "--out", str(out / "by-hand")]
    )
