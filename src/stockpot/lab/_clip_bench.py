"""``stockpot bench clip``: CLIP checkpoints and their mixtures on ImageNet and its shifts, beside published numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stockpot import errors, report, soups
from stockpot.engine import LiveModel
from stockpot.evaluate import Options
from stockpot.lab import _clip_names as names
from stockpot.lab._clip_evaluator import ACCURACY, ClipEvaluator
from stockpot.lab._clip_model import Base, Judge, Texts, in_form, load_base, texts_of
from stockpot.lab._clip_rows import ClipRow, ClipTable
from stockpot.lab._imagenet import CLASSES, IMAGENET, SHIFTS, ImageSet, load_imagenet, load_sketch, load_subset, load_v2
from stockpot.lab._objectnet import load_objectnet
from stockpot.lab._published import MEAN, published, require_key
from stockpot.recipe import Recipe


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


class _Bench:
    """One run under way: everything is open, and what does not fit has been refused."""

    def __init__(
        self, checkpoints: Sequence[str], base: str, data: ClipData, also: Sequence[str], words: ClipWords,
        workers: int | None, running: soups.Running,
    ) -> None:  # fmt: skip
        options, self.running, self.workers = running.options, running, workers
        self.sets, self.held_out = data.load(options.limit)
        self.keyed = [_keyed(text) for text in also]
        self.base = load_base(base, running)
        others = [soups.Ingredients.open([ref for _, ref in self.keyed])] if self.keyed else []
        shape = _one_shape([soups.Ingredients.open(checkpoints), *others])
        texts = None
        if not shape.has_head or names.HEAD_WEIGHT not in self.base.weights:
            texts = texts_of(self.base, words.classnames, words.templates, words.tokenizer, CLASSES)
        self.judge = Judge(self.base, shape, texts, options, running.results)
        own_base = in_form(self.base, shape, texts, options.device, running.results)
        self.alike = soups.Correspondence(only=(names.VISION,) if shape.has_head else ())
        self.ingredients = soups.Ingredients.open(checkpoints, own_base, self.alike)
        self.short = report.short_names([*self.ingredients.models, *(ref for _, ref in self.keyed)])
        self.notes = _notes(self.base, texts, shape, self.sets, self.held_out, options)
        self.rows: list[ClipRow] = []
        self.counts = [0, 0]
        live = running.live(self.ingredients)
        for number in range(len(self.ingredients.models)):
            live.plan(self.ingredients.recipe("wise_ft", [number], {"alpha": 0.5}))  # all of them correspond: told now
        self.scorers = self._scorers(self.ingredients, live)

    def _scorers(self, ingredients: soups.Ingredients, live: LiveModel) -> dict[str, soups.Scorer]:
        """One for each set, all on one live model."""
        return {
            name: soups.Scorer(live, self._evaluator(images), self.running.results, heard=self.running.heard)
            for name, images in self.sets.items()
        }

    def _evaluator(self, images: ImageSet) -> ClipEvaluator:
        return ClipEvaluator(images, self.judge, self.running.options, self.workers)

    def score(
        self, label: str, kind: str, recipe: Recipe, key: str | None, members: Sequence[int] | str = (),
        scorers: Mapping[str, soups.Scorer] | None = None,
    ) -> None:  # fmt: skip
        """One more row."""
        by = scorers or self.scorers
        found = {name: 100.0 * own(recipe, f"{label} on {name}").values[ACCURACY] for name, own in by.items()}
        if all(name in found for name in SHIFTS):
            found[MEAN] = sum(found[name] for name in SHIFTS) / len(SHIFTS)
        models = (members,) if isinstance(members, str) else tuple(self.ingredients.models[own] for own in members)
        self.rows.append(ClipRow(label, kind, found, published(key, self.base.architecture), members=models))

    def add_singles(self) -> None:
        """The base, every checkpoint, and models that are not mixed."""
        own = self.ingredients
        self.score("zero-shot", "zero_shot", own.base_alone(), "zero-shot")
        for number, model in enumerate(own.models):
            self.score(self.short[model], "checkpoint", own.average([number]), None, [number])
        if self.keyed:
            extra = soups.Ingredients.open([ref for _, ref in self.keyed], None, self.alike)
            scorers = self._scorers(extra, self.running.live(extra))
            for number, (key, ref) in enumerate(self.keyed):
                self.score(self.short[ref], "also", extra.average([number]), key, ref, scorers)
            self.count(scorers)

    def add_soups(self) -> None:
        """Uniform, and greedy by the held-out images."""
        own, everyone = self.ingredients, range(len(self.ingredients.models))
        if len(everyone) > 1:
            self.score("uniform soup", "uniform", own.average(everyone), "soup-uniform", everyone)
        if self.held_out is None:
            if len(everyone) > 1:
                self.notes.append("no greedy soup and no best single: they are chosen on held-out images (--held-out)")
            return
        soup = soups.greedy(own.models, self._evaluator(self.held_out), correspondence=self.alike, running=self.running)
        self.counts = [self.counts[0] + soup.evaluated, self.counts[1] + soup.known]
        _with_held_out(self.rows, soup, self.base.architecture)
        members = sorted(soup.weights)
        label = f"greedy soup of {len(members)}"
        self.score(label, "greedy", own.average(members), "soup-greedy", members)
        assert soup.chosen is not None
        self.rows[-1] = replace(self.rows[-1], held_out=100.0 * soup.chosen.scores[ACCURACY])

    def add_from_the_base(self, alphas: Sequence[float]) -> None:
        """WiSE-FT of the first checkpoint; Model Stock of two and of all."""
        own, count = self.ingredients, len(self.ingredients.models)
        first = self.short[own.models[0]]
        for alpha in alphas:
            recipe = own.recipe("wise_ft", [0], {"alpha": alpha})
            self.score(f"WiSE-FT {alpha:g} of {first}", "wise_ft", recipe, f"wise-ft-{alpha:g}", [0])
        key = "stock-after" if self.base.architecture == "ViT-B/32" else "stock-headline"
        for members in dict.fromkeys(tuple(range(some)) for some in (2, count) if 2 <= some <= count):
            two = len(members) == 2
            label = f"Model Stock of {'the first 2' if two else f'all {count}'}"
            recipe = own.recipe("model_stock", members)
            self.score(label, "model_stock", recipe, key if two else None, members)

    def count(self, scorers: Mapping[str, soups.Scorer]) -> None:
        """What they had to evaluate, and what was known."""
        self.counts[0] += sum(own.evaluated for own in scorers.values())
        self.counts[1] += sum(own.known for own in scorers.values())

    def expected(self, alphas: int) -> int:
        """Scores that will be asked for at most."""
        count = len(self.ingredients.models)
        rows = 1 + count + len(self.keyed) + alphas + 2 * (count > 1) + (count > 2) + (self.held_out is not None)
        return rows * len(self.sets) + (0 if self.held_out is None else 2 * count - 1)


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
    folders tell. Cost: a pass over all images for each row; memory for the base and two models, whatever their number.
    """
    running = running or soups.Running()
    bench = _Bench(checkpoints, base, data, also, words or ClipWords(), workers, running)
    running.begin(bench.expected(len(alphas)))
    try:
        bench.add_singles()
        bench.add_soups()
        bench.add_from_the_base(alphas)
    finally:
        bench.judge.close()
    bench.count(bench.scorers)
    images = {name: len(own.files) for name, own in bench.sets.items()}
    return ClipTable(
        bench.base.architecture, tuple(bench.sets), images, tuple(bench.rows), tuple(bench.notes), *bench.counts
    )


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
