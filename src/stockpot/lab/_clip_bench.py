"""``stockpot bench clip``: CLIP checkpoints and their mixtures on ImageNet and its shifts, beside published numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stockpot import errors, report, soups
from stockpot.evaluate import Options, Scores
from stockpot.lab import _clip_names as names
from stockpot.lab._clip_model import Base, Judge, Texts, in_form, load_base, texts_of
from stockpot.lab._imagenet import CLASSES, IMAGENET, SHIFTS, ImageSet, load_imagenet, load_sketch, load_subset, load_v2
from stockpot.lab._objectnet import load_objectnet
from stockpot.lab._pixels import batches
from stockpot.lab._published import MEAN, Published, published, require_key
from stockpot.recipe import Recipe

BATCH = 128
ACCURACY = "accuracy"


@dataclass(frozen=True)
class ClipData:
    """Folders of the data sets; ImageNet's is needed, since it settles the order of the classes."""

    imagenet: Path
    v2: Path | None = None
    sketch: Path | None = None
    r: Path | None = None
    objectnet: Path | None = None
    a: Path | None = None
    held_out: Path | None = None
    """Some of ImageNet's training images, in class folders: the greedy soup is chosen by them."""

    def load(self, limit: int | None) -> tuple[dict[str, ImageSet], ImageSet | None]:
        """(test sets in the order of the table, held-out set); what is wrong with a folder is told before all work."""
        first, wnids = load_imagenet(self.imagenet)
        found = {first.name: first}
        if self.v2 is not None:
            found["V2"] = load_v2(self.v2)
        if self.sketch is not None:
            found["Sketch"] = load_sketch(self.sketch, wnids)
        for name, folder in (("R", self.r), ("A", self.a)):
            if folder is not None:
                found[name] = load_subset(folder, name, wnids)
        if self.objectnet is not None:
            found["ObjectNet"] = load_objectnet(self.objectnet)
        held_out = None
        if self.held_out is not None:
            held_out, own = load_imagenet(self.held_out, "held out")
            if own != wnids:
                raise errors.InputError(
                    "the held-out images have other classes than ImageNet", file=str(self.held_out),
                    expected="the same class folders", got=sorted(set(own) - set(wnids))[0],
                )  # fmt: skip
        order = [name for name in (IMAGENET, *SHIFTS) if name in found]
        return {name: found[name].limited(limit) for name in order}, held_out


@dataclass(frozen=True)
class ClipWords:
    """What a zero-shot classifier is made of: files of class names and templates, a folder with a tokenizer."""

    classnames: Path | None = None
    templates: Path | None = None
    tokenizer: Path | None = None


@dataclass(frozen=True)
class ClipEvaluator:
    """Accuracy on one set, by one judge."""

    images: ImageSet
    judge: Judge
    options: Options
    workers: int | None
    form: Literal["state_dict", "checkpoint"] = "state_dict"
    uses_folder: bool = False

    @property
    def name(self) -> str:
        return f"clip:{self.images.name}"

    @cached_property
    def content(self) -> Mapping[str, Any] | None:
        return {"form": "clip", "set": self.images.name, "data": self.images.digest(), **self.judge.content()}

    def evaluate(self, model: dict[str, Any] | Path, folder: Path | None = None) -> Scores:
        assert isinstance(model, dict)
        size, batch = self.judge.base.preparation.size, self.options.batch or BATCH
        labels, right, done = torch.tensor(self.images.labels), 0, 0
        with torch.inference_mode():
            net, head, bias = self.judge.become(model, self.name)
            for pixels in batches(self.images.files, size, batch, border=self.images.border, workers=self.workers):
                found = answered(self.judge.answers(net, head, bias, pixels), self.images.groups)
                right += int((found == labels[done : done + len(found)]).sum())
                done += len(found)
        return Scores({ACCURACY: right / done})


def answered(logits: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """For each row the group that has the greatest logit, a group's being the greatest of its classes'."""
    classes = torch.tensor([number for group in groups for number in group])
    if not torch.isfinite(logits).all():
        raise errors.EvaluatorError("the model's answers are not finite numbers", remedy="try --precision float32")
    owner = torch.tensor([place for place, group in enumerate(groups) for _ in group])
    return owner[logits[:, classes].argmax(dim=1)]


@dataclass(frozen=True)
class ClipRow:
    """One model: accuracy in per cent by set and, where all five shifts are there, their mean."""

    label: str
    kind: str
    scores: Mapping[str, float]
    published: Published | None = None
    held_out: float | None = None
    members: tuple[str, ...] = ()

    @property
    def differences(self) -> dict[str, float]:
        """Ours less theirs, in points, where both have a number."""
        theirs = {} if self.published is None else self.published.values
        return {name: self.scores[name] - value for name, value in theirs.items() if name in self.scores}

    def data(self) -> dict[str, object]:
        """Plain values."""
        own = self.published
        shown = (
            None
            if own is None
            else {"key": own.key, "source": own.source, "what": own.what, "values": dict(own.values)}
        )
        return {
            "label": self.label, "kind": self.kind, "members": list(self.members), "scores": dict(self.scores),
            "held_out": self.held_out, "published": shown, "differences": self.differences,
        }  # fmt: skip


@dataclass(frozen=True)
class ClipTable:
    """A finished run; ``notes``: what differs from the papers' protocol, and where data are not as published."""

    architecture: str | None
    sets: tuple[str, ...]
    images: Mapping[str, int]
    rows: tuple[ClipRow, ...]
    notes: tuple[str, ...]
    evaluated: int
    known: int

    def data(self) -> dict[str, object]:
        """Plain values."""
        return {
            "architecture": self.architecture, "sets": list(self.sets), "images": dict(self.images),
            "rows": [row.data() for row in self.rows], "notes": list(self.notes), "evaluated": self.evaluated,
            "known": self.known,
        }  # fmt: skip


@dataclass
class _Bench:
    """One run under way."""

    ingredients: soups.Ingredients
    scorers: Mapping[str, soups.Scorer]
    architecture: str | None
    rows: list[ClipRow] = field(default_factory=list)

    def score(self, label: str, kind: str, recipe: Recipe, key: str | None, members: Sequence[str] = ()) -> None:
        """One more row."""
        found = {name: 100.0 * own(recipe, f"{label} on {name}").values[ACCURACY] for name, own in self.scorers.items()}
        if all(name in found for name in SHIFTS):
            found[MEAN] = sum(found[name] for name in SHIFTS) / len(SHIFTS)
        self.rows.append(ClipRow(label, kind, found, published(key, self.architecture), members=tuple(members)))


def clip_bench(
    checkpoints: Sequence[str],
    base: str,
    data: ClipData,
    *,
    also: Sequence[str] = (),
    alphas: Sequence[float] = (0.5,),
    words: ClipWords | None = None,
    workers: int | None = None,
    running: soups.Running | None = None,
) -> ClipTable:
    """Score the base, each checkpoint, and soups, WiSE-FT and Model Stock of them on every set that is given.

    Arguments: ``checkpoints``, fine-tunes of ``base``, all in one form; ``also``, models that are scored and not mixed,
    as ``KEY=MODEL`` beside the published row of that key; ``alphas`` of WiSE-FT from the base to the first checkpoint;
    ``workers``, threads for images. Results are kept in ``running.cache``: the same call goes on where it stopped.
    Returns a ClipTable. Raises InputError kinds for folders and checkpoints, before any evaluation where headers and
    folders tell. Cost: a pass over all images for each row, models of 16-bit or 32-bit weights one at a time in memory.
    """
    running = running or soups.Running()
    options = running.options
    sets, held_out = data.load(options.limit)
    keyed = [_keyed(text) for text in also]
    loaded = load_base(base, running)
    others = [soups.Ingredients.open([ref for _, ref in keyed])] if keyed else []
    shape = _one_shape([soups.Ingredients.open(checkpoints), *others])
    needs_texts = not shape.has_head or names.HEAD_WEIGHT not in loaded.weights
    words = words or ClipWords()
    texts = texts_of(loaded, words.classnames, words.templates, words.tokenizer, CLASSES) if needs_texts else None
    judge = Judge(loaded, shape, texts, options.device, options.precision)
    own_base = in_form(loaded, shape, texts, options.device)
    alike = soups.Correspondence(only=(names.VISION,) if shape.has_head else ())
    ingredients = soups.Ingredients.open(checkpoints, own_base, alike)
    live = running.live(ingredients)
    for number in range(len(ingredients.models)):
        live.plan(ingredients.recipe("wise_ft", [number], {"alpha": 0.5}))  # all of them correspond: told now

    def scorer(images: ImageSet, own: soups.Ingredients) -> soups.Scorer:
        return soups.Scorer(
            live if own is ingredients else running.live(own), ClipEvaluator(images, judge, options, workers),
            running.results, heard=running.heard,
        )  # fmt: skip

    bench = _Bench(
        ingredients, {name: scorer(images, ingredients) for name, images in sets.items()}, loaded.architecture
    )
    count = len(checkpoints)
    rows = 1 + count + len(also) + (count > 1) + len(alphas) + (count > 1) + (count > 2) + (held_out is not None)
    running.begin(rows * len(sets) + (0 if held_out is None else 2 * count - 1))
    short = report.short_names([*ingredients.models, *(ref for _, ref in keyed)])
    bench.score("zero-shot", "zero_shot", ingredients.base_alone(), "zero-shot")
    for number, model in enumerate(ingredients.models):
        bench.score(short[model], "checkpoint", ingredients.average([number]), None, [model])
    evaluated = known = 0
    if keyed:
        extra = soups.Ingredients.open([ref for _, ref in keyed], None, alike)
        theirs = _Bench(extra, {name: scorer(images, extra) for name, images in sets.items()}, loaded.architecture)
        for number, (key, ref) in enumerate(keyed):
            theirs.score(short[ref], "also", extra.average([number]), key, [ref])
        bench.rows += theirs.rows
        evaluated, known = _counted(theirs.scorers)
    notes = _notes(loaded, texts, shape, sets, held_out, options)
    if count > 1:
        bench.score("uniform soup", "uniform", ingredients.average(range(count)), "soup-uniform", ingredients.models)
    if held_out is not None:
        soup = soups.greedy(
            checkpoints, ClipEvaluator(held_out, judge, options, workers), correspondence=alike, running=running
        )
        evaluated, known = evaluated + soup.evaluated, known + soup.known
        _with_held_out(bench.rows, soup, loaded.architecture)
        members = sorted(soup.weights)
        bench.score(
            f"greedy soup of {len(members)}", "greedy", ingredients.average(members), "soup-greedy",
            [ingredients.models[number] for number in members],
        )  # fmt: skip
        assert soup.chosen is not None
        bench.rows[-1] = replace(bench.rows[-1], held_out=100.0 * soup.chosen.scores[ACCURACY])
    elif count > 1:
        notes.append("no greedy soup and no best single: they are chosen on held-out images (--held-out)")
    for alpha in alphas:
        recipe = ingredients.recipe("wise_ft", [0], {"alpha": alpha})
        first = ingredients.models[0]
        bench.score(f"WiSE-FT {alpha:g} of {short[first]}", "wise_ft", recipe, f"wise-ft-{alpha:g}", [first])
    for stock in dict.fromkeys(tuple(range(own)) for own in (2, count) if 2 <= own <= count):
        key = "stock-after" if loaded.architecture == "ViT-B/32" else "stock-headline"
        label = f"Model Stock of {'the first 2' if len(stock) == 2 else f'all {count}'}"
        chosen = [ingredients.models[number] for number in stock]
        recipe = ingredients.recipe("model_stock", stock)
        bench.score(label, "model_stock", recipe, key if len(stock) == 2 else None, chosen)
    more = _counted(bench.scorers)
    judge.close()
    return ClipTable(
        loaded.architecture, tuple(sets), {name: len(images.files) for name, images in sets.items()}, tuple(bench.rows),
        tuple(notes), evaluated + more[0], known + more[1],
    )  # fmt: skip


def _keyed(text: str) -> tuple[str | None, str]:
    """``KEY=MODEL`` or ``MODEL``."""
    key, equals, ref = text.partition("=")
    if not equals or Path(text).exists():
        return None, text
    require_key(key)
    return key, ref


def _one_shape(found: Sequence[soups.Ingredients]) -> names.Shape:
    """That of all models; AlignmentError where they differ."""
    sources = {ref: one.sources[ref] for one in found for ref in one.models}
    shapes = {ref: names.shape_of([*own.tensors, *own.aliases], ref) for ref, own in sources.items()}
    first = found[0].models[0]
    other = next((ref for ref in shapes if shapes[ref] != shapes[first]), None)
    if other is not None:
        raise errors.AlignmentError(
            "checkpoints of two forms cannot be mixed", file=other, expected=f"{shapes[first]}, as {first}",
            got=shapes[other], remedy="score them by a command each",
        )  # fmt: skip
    return shapes[first]


def _with_held_out(rows: list[ClipRow], soup: soups.Soup, architecture: str | None) -> None:
    """Each single's held-out accuracy, and the published best single beside the best."""
    singles = {one.label: 100.0 * one.scores[ACCURACY] for one in soup.candidates if one.sort == "model"}
    best = max(singles, key=lambda model: singles[model])
    for place, row in enumerate(rows):
        if row.kind == "checkpoint":
            own = row.members[0]
            beside = published("soup-best-single", architecture) if own == best else None
            label = f"{row.label} (best held out)" if own == best else row.label
            rows[place] = replace(row, label=label, held_out=singles[own], published=beside)


def _notes(
    base: Base, texts: Texts | None, shape: names.Shape, sets: Mapping[str, ImageSet], held_out: ImageSet | None,
    options: Options,
) -> list[str]:  # fmt: skip
    """What a reader of the table must know."""
    found = [*base.notes, *(() if texts is None else texts.notes)]
    every = [*sets.values(), *(() if held_out is None else (held_out,))]
    if options.limit is not None:
        found.append(f"at most {options.limit:,} images of each test set: no comparison with published numbers is fair")
    found += [note for images in every for note in images.notes]
    if base.architecture is None:
        found.append("no published numbers: this is neither ViT-B/32, ViT-B/16 nor ViT-L/14 at 224 pixels")
    if shape.form == "transformers":
        found.append("query, key and value are tensors of their own here, with a ratio each; in the paper they are one")
    if missing := [name for name in SHIFTS if name not in sets]:
        found.append(f"not given, and no mean of 5 without them: {', '.join(missing)}")
    return found


def _counted(scorers: Mapping[str, soups.Scorer]) -> tuple[int, int]:
    return sum(own.evaluated for own in scorers.values()), sum(own.known for own in scorers.values())
