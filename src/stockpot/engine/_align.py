"""Which tensors correspond, by names and shapes alone; headers only, nothing is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from stockpot import errors
from stockpot.checkpoint import NAME_CAP, TensorInfo, itemsize, ties_words
from stockpot.engine._job import Job, split_rename
from stockpot.engine._names import missing_error, rename_hints, tied_head
from stockpot.engine._settings import Settings
from stockpot.engine._slots import Action, Decision, Inputs, Slot, SlotStatistic, View, slot_of, source_path
from stockpot.engine._stretches import Stack, Stretch, scope_of, stretches_of, whole
from stockpot.engine._watch import Watch

__all__ = ["Action", "Alignment", "Decision", "Inputs", "Slot", "SlotStatistic", "align", "renamed", "source_path"]


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
    stacks: tuple[Stack, ...] = ()
    """Where the layers of the output come from, where a recipe stacks them."""


def align(job: Job, inputs: Inputs) -> Alignment:
    """Decide what becomes of each tensor; raises AlignmentError with every problem at once."""
    views, aliases, untied = _tied_views(renamed(job, inputs), inputs)
    stacks: list[Stack] = []
    if job.is_plain:
        stretches = [whole(job, inputs, views)]
    else:
        stretches, stacks = stretches_of(job, inputs, views, aliases)
        aliases = {alias: name for alias, name in aliases.items() if not _is_stacked(alias, stacks)}
    names = [_output_names(job, one, aliases) for one in stretches]
    rest = [] if job.is_plain else _outside(job, inputs, views, aliases)
    known = [*(name for own in names for name in own), *rest]
    selected = _selection(job, known)
    there = set(known)
    decisions = [Decision(name, "ties", "untied: not all inputs tie it") for name in untied if name in there]
    settings = Settings(job)
    problems: list[errors.StockpotError] = []
    slots: list[Slot] = []
    for one, own in zip(stretches, names, strict=True):
        slots += _slots_of(job, one, [name for name in own if name in selected], settings, decisions, problems)
    _raise(problems)
    copied = [name for name in known if name not in selected]
    template = _template(job, inputs, views, aliases, {slot.name: slot.shape for slot in slots} | dict.fromkeys(copied))
    for one, own in zip(stretches, names, strict=True):
        slots += [_copied(name, one, template, decisions) for name in own if name not in selected]
    for name in rest:
        slots.append(
            Slot(name, views[0][name].shape, views[0][name].output_dtype, "mix", ((0, views[0][name]),), (1.0,))
        )
        decisions.append(Decision(name, "modules", "copied from the base"))
    order = {name: place for place, name in enumerate(views[template])}
    slots.sort(key=lambda slot: order.get(slot.name, len(order)))
    kept = {slot.name for slot in slots}
    notes = [
        *settings.notes([*known, *(name for one in stretches for own in one.own_names for name in own.values())]),
        *_dtype_notes(job, inputs, slots),
    ]
    if any(decision.policy == "statistics" for decision in decisions):
        notes.append("BatchNorm statistics were averaged: re-estimate them on data before use")
    if rest:
        notes.append(f"{len(rest)} tensors are of no module in the recipe: copied from the base")
    return Alignment(
        tuple(slots),
        {alias: name for alias, name in aliases.items() if name in kept},
        template,
        tuple(decisions),
        {name: other for name, other in untied.items() if name in kept},
        tuple(notes),
        settings.found or (job.values,),
        tuple(stacks),
    )


def _slots_of(
    job: Job,
    one: Stretch,
    names: Sequence[str],
    settings: Settings,
    decisions: list[Decision],
    problems: list[errors.StockpotError],
) -> list[Slot]:
    """The tensors of a stretch, by the numbers of all inputs; what cannot be aligned is added to the problems."""
    slots: list[Slot] = []
    missing: dict[str, list[int]] = {}
    place = len(problems)
    for name in names:
        try:
            found = slot_of(job, one.inputs, one.views, name, decisions, missing)
            if found is None:
                continue
            setting = settings.number(one, name) if found.action == "merge" else 0
        except errors.StockpotError as error:
            problems.append(error)
            continue
        if setting or not job.is_plain:
            sources = tuple((one.numbers[number], info) for number, info in found.sources)
            found = replace(found, setting=setting, sources=sources)
        slots.append(found)
    if missing:
        has_base = one.inputs.has_base
        hints = rename_hints(one.views, has_base) if job.is_plain else []
        problems.insert(place, missing_error(missing, one.inputs.checkpoints, one.views, has_base, hints))
    return slots


def _is_stacked(name: str, stacks: Sequence[Stack]) -> bool:
    return any(name.startswith(stack.prefix) for stack in stacks)


def _outside(job: Job, inputs: Inputs, views: Sequence[View], aliases: Mapping[str, str]) -> list[str]:
    """Names that no module of the recipe has: the base's are copied."""
    if job.recipe.modules is None:
        return []
    prefixes = tuple({prefix for section in job.sections for prefix in scope_of(section, views)})
    names = dict.fromkeys(name for view in views for name in view if name not in aliases)
    rest = [name for name in names if not name.startswith(prefixes)]
    lacking = [name for name in rest if not inputs.has_base or name not in views[0]]
    if lacking:
        raise errors.MissingTensorError(
            "a tensor is of no module in the recipe, and the base has it not" if inputs.has_base
            else "a tensor is of no module in the recipe, and there is no base_model to take it from",
            tensor=lacking[0], remedy="add a base_model that has it, or a module",
        )  # fmt: skip
    return rest


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


def _output_names(job: Job, one: Stretch, aliases: Mapping[str, str]) -> list[str]:
    names = dict.fromkeys(name for number in one.inputs.models for name in one.views[number] if name not in aliases)
    if one.inputs.has_base and job.anchored:
        names.update(dict.fromkeys(name for name in one.views[0] if name not in aliases))
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


def _copied(name: str, one: Stretch, template: int, decisions: list[Decision]) -> Slot:
    """As the template has it, else the base, else the first model that has it."""
    first = [number for number, whose in enumerate(one.numbers) if whose == template]
    order = [*first, *([0] if one.inputs.has_base else []), *one.inputs.models]
    number = next(number for number in order if name in one.views[number])
    info = one.views[number][name]
    decisions.append(Decision(name, "selection", "copied"))
    return Slot(name, info.shape, info.output_dtype, "mix", ((one.numbers[number], info),), (1.0,), checked=False)


def _raise(problems: Sequence[errors.StockpotError]) -> None:
    if not problems:
        return
    first, *rest = problems
    lines = [*first.problems, *(problem.line() for problem in rest)]
    if lines and not first.problems and isinstance(first, errors.AlignmentError):
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
    return itemsize(base) < min((itemsize(dtype) for dtype in _dtypes(slot, inputs)), default=0)
