"""Which tensors correspond, by names and shapes alone; headers only, nothing is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stockpot import errors
from stockpot.adapters import AdapterSum
from stockpot.checkpoint import (
    EMBEDDINGS,
    HEADS,
    NAME_CAP,
    Source,
    TensorInfo,
    is_mergeable,
    itemsize,
    ties_words,
    widest,
)
from stockpot.engine._job import Job, split_rename
from stockpot.engine._matched import Matched
from stockpot.engine._names import missing_error, rename_hints, tied_head
from stockpot.engine._watch import Watch

if TYPE_CHECKING:
    from stockpot.vocabulary import Vocabulary

Action = Literal["merge", "mix", "same"]
_PIECE = 1 << 20
_COUNTERS = ("I64", "I32", "I16", "U64", "U32")
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy or rule that made a tensor something other than merged."""

    tensor: str
    policy: str
    action: str


@dataclass(frozen=True, slots=True)
class Slot:
    """One output tensor and where it comes from.

    ``action``: ``merge`` by the method; ``mix`` with the fixed ``weights``; ``same``: copied from the first source
    after all were found equal. ``sources``: (input number, place), reference first.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    action: Action
    sources: tuple[tuple[int, TensorInfo], ...]
    weights: tuple[float, ...] | None = None
    checked: bool = True
    """Whether NaN and Inf in it are refused; not where the user left the tensor out of the merge."""
    setting: int = 0
    """Which of the alignment's ``settings`` are its method's parameters."""
    statistics: tuple[Matched, ...] = ()
    """What data say of the tensor, one for each model; those that are streamed stand behind ``sources`` too."""


@dataclass(frozen=True)
class Inputs:
    """The opened checkpoints: ``checkpoints[0]`` is the base where there is one, then the models in order, then the
    files of ``statistics``, as many as it says."""

    checkpoints: tuple[Source, ...]
    has_base: bool
    adapters: AdapterSum | None = None
    """Where adapters are merged: what they become, the one checkpoint."""
    originals: Inputs | None = None
    """Where adapters are merged: they themselves."""
    vocabulary: Vocabulary | None = None
    """Where a recipe speaks of tokenizers or chat templates: what comes of it."""
    statistics: int = 0

    @property
    def given(self) -> Inputs:
        """What the user gave."""
        return self.originals or self

    def role(self, number: int) -> str:
        """base, model or statistics."""
        if number >= len(self.checkpoints) - self.statistics:
            return "statistics"
        return "base" if self.has_base and number == 0 else "model"

    @property
    def first_model(self) -> int:
        """Number of the first model."""
        return 1 if self.has_base else 0

    @property
    def models(self) -> range:
        """Numbers of the models."""
        return range(self.first_model, len(self.checkpoints) - self.statistics)


@dataclass(frozen=True)
class Alignment:
    """Every output tensor, in the template's order, with what was decided."""

    slots: tuple[Slot, ...]
    aliases: Mapping[str, str]
    template: int
    decisions: tuple[Decision, ...]
    untied: Mapping[str, str]
    """Names that some inputs tie to another, and the output stores beside it."""
    notes: tuple[str, ...]
    settings: tuple[Mapping[str, object], ...]
    """The different parameters that tensors are merged by; per-model ones in the order of the tensor's models."""


View = Mapping[str, TensorInfo]


def align(job: Job, inputs: Inputs) -> Alignment:
    """Decide what becomes of each tensor; raises AlignmentError with every problem at once."""
    views, aliases, untied = _tied_views(renamed(job, inputs), inputs)
    names = _output_names(job, inputs, views, aliases)
    selected = _selection(job, names)
    decisions = [Decision(name, "ties", "untied: not all inputs tie it") for name in untied if name in names]
    problems: list[errors.AlignmentError] = []
    slots: list[Slot] = []
    missing: dict[str, list[int]] = {}
    for name in names:
        if name not in selected:
            continue
        try:
            found = _aligned(job, inputs, views, name, decisions, missing)
        except errors.AlignmentError as error:
            problems.append(error)
            continue
        if found is not None:
            slots.append(found)
    if missing:
        problems.insert(
            0, missing_error(missing, inputs.checkpoints, views, inputs.has_base, rename_hints(views, inputs.has_base))
        )
    _raise(problems)
    copied = [name for name in names if name not in selected]
    template = _template(job, inputs, views, aliases, {slot.name: slot.shape for slot in slots} | dict.fromkeys(copied))
    slots += [_copied(name, inputs, views, template, decisions) for name in copied]
    order = {name: place for place, name in enumerate(views[template])}
    slots.sort(key=lambda slot: order.get(slot.name, len(order)))
    kept = {slot.name for slot in slots}
    notes = _dtype_notes(job, inputs, slots)
    if any(decision.policy == "statistics" for decision in decisions):
        notes.append("BatchNorm statistics were averaged: re-estimate them on data before use")
    return Alignment(
        tuple(slots),
        {alias: name for alias, name in aliases.items() if name in kept},
        template,
        tuple(decisions),
        {name: other for name, other in untied.items() if name in kept},
        tuple(notes),
        (job.values,),
    )


def renamed(job: Job, inputs: Inputs) -> list[dict[str, TensorInfo]]:
    """Every name of each input (further names of the same bytes too), after ``--rename``."""
    rules = [split_rename(text) for text in job.recipe.policies.rename]
    highest = len(inputs.models)
    for who, _, _ in rules:
        if (who == "base" and not inputs.has_base) or (who not in (None, "base") and int(who) > highest):
            raise errors.UsageError(f"--rename names input {who}, which is not there", expected=f"base, 1 to {highest}")
    views = []
    watch = Watch("--rename")
    used = [False] * len(rules)
    for number, checkpoint in enumerate(inputs.checkpoints):
        label = "base" if inputs.has_base and number == 0 else str(number - inputs.first_model + 1)
        view: dict[str, TensorInfo] = {}
        aliased = {alias: checkpoint.tensors[kept] for alias, kept in checkpoint.aliases.items()}
        for name, info in [*checkpoint.tensors.items(), *aliased.items()]:
            new = name
            for place, (who, pattern, replacement) in enumerate(rules):
                if who in (None, label):
                    watch.require(pattern, new)
                    changed, hits = _replace(pattern, replacement, new)
                    used[place] |= bool(hits)
                    new = changed
            if new in view or (not new and name):
                raise errors.UsageError(
                    "--rename gives two tensors one name" if new else "--rename takes a whole name away",
                    tensor=new or name,
                    file=checkpoint.ref,
                    got=f"{name} and {view[new].name}" if new else None,
                )
            view[new] = info
        views.append(view)
    for (who, pattern, _), hit in zip(rules, used, strict=True):
        if not hit:
            raise errors.UsageError(f"--rename matches nothing: {pattern!r}", got=f"input {who or 'any'}")
    return views


def _replace(pattern: str, replacement: str, name: str) -> tuple[str, int]:
    try:
        new, hits = re.subn(pattern, replacement, name)
    except (re.error, IndexError) as error:
        raise errors.ParameterError(f"--rename's replacement cannot be used ({error})", got=repr(replacement)) from None
    if len(new) > max(NAME_CAP, len(name)):
        raise errors.ParameterError(
            "--rename makes a name absurdly long", tensor=name, expected=f"at most {NAME_CAP} characters", got=len(new)
        )
    return new, hits


def _tied_views(
    views: list[dict[str, TensorInfo]], inputs: Inputs
) -> tuple[list[dict[str, TensorInfo]], dict[str, str], dict[str, str]]:
    """Names tied everywhere become aliases of the output's tensor; the others, returned last, tensors of their own."""
    untied: dict[str, str] = {}
    known: set[str] = set().union(*views)
    everywhere = set(views[0]).intersection(*views)
    for view, checkpoint in zip(views, inputs.checkpoints, strict=True):
        for part in checkpoint.parts:
            if ties_words(part.config) and (pair := tied_head(view, known, part.prefix)):
                head, embedding = pair
                view[head] = view[embedding]
    aliases: dict[str, str] = {}
    for view in views:
        groups: dict[int, list[str]] = {}
        for name, info in view.items():
            groups.setdefault(id(info), []).append(name)
        for names in groups.values():
            kept = next((name for name in names if name in everywhere), names[0])
            for name in names:
                if name == kept or name in aliases or kept in aliases or name in untied:
                    continue
                # Who lacks a name that the others only tie has not lost it: libraries leave such names out.
                if all(name not in other or other[name] is other.get(kept) for other in views):
                    aliases[name] = kept
                else:
                    untied[name] = kept
    return views, aliases, untied


def _output_names(job: Job, inputs: Inputs, views: Sequence[View], aliases: Mapping[str, str]) -> list[str]:
    names = dict.fromkeys(name for number in inputs.models for name in views[number] if name not in aliases)
    if inputs.has_base and job.anchored:
        names.update(dict.fromkeys(name for name in views[0] if name not in aliases))
    return list(names)


def _selection(job: Job, names: Sequence[str]) -> set[str]:
    policies = job.recipe.policies
    matched: dict[str, set[str]] = {"--only": set(), "--exclude": set()}
    for option, patterns in (("--only", policies.only), ("--exclude", policies.exclude)):
        watch = Watch(option)
        for pattern in patterns:
            found = {name for name in names if watch.search(pattern, name)}
            if not found:
                raise errors.UsageError(
                    f"{option} {pattern!r} matches no tensor", remedy="merge --dry-run --json lists the names"
                )
            matched[option] |= found
    chosen = matched["--only"] if policies.only else set(names)
    return chosen - matched["--exclude"]


def _template(
    job: Job,
    inputs: Inputs,
    views: Sequence[View],
    aliases: Mapping[str, str],
    output: Mapping[str, tuple[int, ...] | None],
) -> int:
    """The first of (models, base) whose names and shapes are the output's; ``--template`` overrides."""
    order: list[int] = [*inputs.models, *([0] if inputs.has_base else [])]
    asked = job.recipe.policies.template
    if asked is not None:
        if asked == "base" and inputs.has_base:
            return 0
        if re.fullmatch(r"[0-9]{1,9}", asked) and 1 <= int(asked) <= len(inputs.models):
            return inputs.models[int(asked) - 1]
        raise errors.UsageError("--template names no input", expected=f"base, or 1 to {len(inputs.models)}", got=asked)

    def fits(view: View) -> bool:
        return len(view) >= len(output) and all(
            name in view and shape in (None, view[name].shape) for name, shape in output.items()
        )

    fitting = [number for number in order if fits(views[number])]
    exact = [n for n in fitting if sum(name not in aliases for name in views[n]) == len(output)]
    return (exact or fitting or order)[0]


def _copied(name: str, inputs: Inputs, views: Sequence[View], template: int, decisions: list[Decision]) -> Slot:
    order = [template, *([0] if inputs.has_base else []), *inputs.models]
    number = next(number for number in order if name in views[number])
    info = views[number][name]
    decisions.append(Decision(name, "selection", "copied"))
    return Slot(name, info.shape, info.output_dtype, "mix", ((number, info),), (1.0,), checked=False)


def _aligned(
    job: Job,
    inputs: Inputs,
    views: Sequence[View],
    name: str,
    decisions: list[Decision],
    missing: dict[str, list[int]],
) -> Slot | None:
    having = [number for number in inputs.models if name in views[number]]
    needed = [*([0] if job.anchored else []), *inputs.models]
    lacking = [number for number in needed if name not in views[number]]
    if lacking:
        return _missing(job, inputs, views, name, having, lacking, decisions, missing)
    infos = {number: views[number][name] for number in needed}
    first = infos[inputs.first_model]
    of_models = {number: infos[number] for number in inputs.models}
    if name.rsplit(".", 1)[-1] in _STATISTICS and all(is_mergeable(info.dtype) for info in of_models.values()):
        _require_shapes(job, inputs, name, of_models)
        decisions.append(Decision(name, "statistics", "mean"))
        return _mean(job, name, list(of_models.items()))
    if not all(is_mergeable(info.dtype) for info in infos.values()):
        return _unmergeable(job, inputs, name, infos, decisions)
    try:
        _require_shapes(job, inputs, name, infos)
    except errors.MismatchError:
        policy = job.recipe.policies.mismatch
        if policy == "error":
            raise
        return _taken(job, inputs, name, infos, "mismatch", policy, decisions)
    dtype = job.dtype or _agreed([infos[number].output_dtype for number in inputs.models])
    return Slot(name, first.shape, dtype, "merge", tuple((number, infos[number]) for number in needed))


def _agreed(dtypes: Sequence[str]) -> str:
    return dtypes[0] if len(set(dtypes)) == 1 else widest(dtypes)


def _mean(job: Job, name: str, sources: Sequence[tuple[int, TensorInfo]]) -> Slot:
    dtype = job.dtype or _agreed([info.output_dtype for _, info in sources])
    weights = (1.0 / len(sources),) * len(sources)
    return Slot(name, sources[0][1].shape, dtype, "mix", tuple(sources), weights)


def _missing(
    job: Job,
    inputs: Inputs,
    views: Sequence[View],
    name: str,
    having: Sequence[int],
    lacking: Sequence[int],
    decisions: list[Decision],
    missing: dict[str, list[int]],
) -> Slot | None:
    policy = job.recipe.policies.missing
    in_base = inputs.has_base and name in views[0]
    if policy == "error" or (policy == "base" and not in_base):
        missing[name] = list(lacking)
        return None
    if policy == "base":
        return _taken(job, inputs, name, {0: views[0][name]}, "missing", "base", decisions)
    if not having:
        decisions.append(Decision(name, "missing", "dropped: only the base has it"))
        return None
    infos = {number: views[number][name] for number in having}
    if policy == "first" or not all(is_mergeable(info.dtype) for info in infos.values()):
        return _taken(job, inputs, name, infos, "missing", "first", decisions)
    _require_shapes(job, inputs, name, infos)
    decisions.append(Decision(name, "missing", f"average of {len(having)}"))
    return _mean(job, name, list(infos.items()))


def _taken(
    job: Job,
    inputs: Inputs,
    name: str,
    infos: Mapping[int, TensorInfo],
    policy: str,
    who: str,
    decisions: list[Decision],
) -> Slot:
    """One input's tensor, unmerged (still converted where a dtype was asked for)."""
    if who == "base" and not (inputs.has_base and 0 in infos):
        raise errors.MismatchError(
            "the base has no such tensor to fall back on", tensor=name, remedy=f"--{policy} first"
        )
    number = 0 if who == "base" else next(n for n in inputs.models if n in infos)
    info = infos[number]
    decisions.append(Decision(name, policy, who))
    dtype = job.dtype if job.dtype and is_mergeable(info.dtype) else info.output_dtype
    return Slot(name, info.shape, dtype, "mix", ((number, info),), (1.0,))


def _unmergeable(
    job: Job, inputs: Inputs, name: str, infos: Mapping[int, TensorInfo], decisions: list[Decision]
) -> Slot:
    """Integers, bools, FP8, packed: equal over the models, or refused; a 0-d counter is the first model's."""
    of_models = [(number, infos[number]) for number in inputs.models]
    number, info = of_models[0]
    if all(other.shape == () and other.dtype in _COUNTERS for _, other in of_models):
        decisions.append(Decision(name, "counter", "first"))
        return Slot(name, info.shape, info.dtype, "mix", ((number, info),), (1.0,))
    policy = job.recipe.policies.mismatch
    if policy != "error" and not _values_equal(inputs, of_models):
        return _taken(job, inputs, name, infos, "mismatch", policy, decisions)
    if any(other.dtype != info.dtype for _, other in of_models):
        raise errors.MismatchError(
            "dtypes that cannot be merged differ", tensor=name, expected=info.dtype,
            got=", ".join(other.dtype for _, other in of_models), remedy="--mismatch first, or --exclude it",
        )  # fmt: skip
    _require_shapes(job, inputs, name, dict(of_models))
    return Slot(name, info.shape, info.dtype, "same", tuple(of_models))


def _values_equal(inputs: Inputs, sources: Sequence[tuple[int, TensorInfo]]) -> bool:
    """Whether all sources hold the same bytes in the same form. The one place where planning reads data."""
    (first, kept), *others = sources
    buffers = [memoryview(bytearray(min(kept.nbytes, _PIECE))) for _ in range(2)]
    for number, info in others:
        if (info.dtype, info.shape, info.strides, info.nbytes) != (kept.dtype, kept.shape, kept.strides, kept.nbytes):
            return False
        for start in range(0, kept.nbytes, _PIECE):
            left, right = (buffer[: min(_PIECE, kept.nbytes - start)] for buffer in buffers)
            inputs.checkpoints[first].read_into(kept, start, left)
            inputs.checkpoints[number].read_into(info, start, right)
            if left != right:
                return False
    return True


def source_path(inputs: Inputs, number: int, info: TensorInfo) -> str:
    """Where a tensor lies: its file, or what the input is called."""
    checkpoint = inputs.checkpoints[number]
    return checkpoint.files[info.file].path if checkpoint.files else checkpoint.ref


def _require_shapes(job: Job, inputs: Inputs, name: str, infos: Mapping[int, TensorInfo]) -> None:
    first = next(iter(infos))
    for number, info in infos.items():
        kept = infos[first].shape
        if info.shape == kept:
            continue
        is_vocabulary = name.endswith((*HEADS, *EMBEDDINGS)) and info.shape[1:] == kept[1:]
        raise errors.MismatchError(
            "vocabularies of different sizes" if is_vocabulary else "shapes differ",
            tensor=name,
            file=source_path(inputs, number, info),
            expected=f"{list(kept)} as in {inputs.checkpoints[first].ref}",
            got=f"{list(info.shape)}",
            remedy="a recipe with tokenizer_source (union, base or a model) brings them to one; "
            "--mismatch first takes the first model's, with its tokenizer, unmerged; --mismatch base the base's"
            if is_vocabulary
            else "--mismatch base|first takes it unmerged, --exclude leaves it as the template has it",
        )


def _raise(problems: Sequence[errors.AlignmentError]) -> None:
    if not problems:
        return
    first, *rest = problems
    lines = [*first.problems, *(problem.line() for problem in rest)]
    if lines and not first.problems:
        first = type(first)(
            f"{first.what} ({len(problems)} tensors)", tensor=first.tensor, file=first.file,
            expected=first.expected, got=first.got, remedy=first.remedy, problems=lines,
        )  # fmt: skip
    elif rest:
        first.problems = tuple(lines)
    raise first


def _dtype_notes(job: Job, inputs: Inputs, slots: Sequence[Slot]) -> list[str]:
    notes = []
    mixed = [slot for slot in slots if slot.action == "merge" and len(set(_dtypes(slot, inputs))) > 1]
    if mixed and job.dtype is None:
        notes.append(
            f"{len(mixed)} tensors differ in dtype between the models: the widest is written, "
            f"{mixed[0].dtype} for {mixed[0].name}"
        )
    narrow = [slot for slot in slots if slot.action == "merge" and job.anchored and _is_narrower(slot, inputs)]
    if narrow:
        stored = narrow[0].sources[0][1].output_dtype
        notes.append(
            f"the base is stored narrower than the models ({stored}, {len(narrow)} tensors): "
            "its rounding is common to all task vectors and raises their cosines"
        )
    return notes


def _dtypes(slot: Slot, inputs: Inputs) -> Iterator[str]:
    return (info.output_dtype for number, info in slot.sources if number in inputs.models)


def _is_narrower(slot: Slot, inputs: Inputs) -> bool:
    base = slot.sources[0][1].output_dtype
    return itemsize(base) < min(itemsize(dtype) for dtype in _dtypes(slot, inputs))
