"""Stretches of the output that have sources of their own: all of it, or the slices and modules of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stockpot import errors
from stockpot.methods import Method
from stockpot.recipe import ModelEntry, Recipe, Setting, Slice, SliceSource

Levels = tuple[Mapping[str, Setting], ...]


@dataclass(frozen=True)
class Member:
    """A source of a section: which input it is, of which layers, with parameters of its own."""

    input: int
    ref: str
    parameters: Mapping[str, Setting]
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class Section:
    """Sources that are merged with one another. ``levels``: parameters for all of them, those that win first.

    ``anchor``: the base, where it is the first input of the method. ``module``: the part of the model that it is of.
    """

    members: tuple[Member, ...]
    anchor: Member | None
    levels: Levels
    module: str | None = None
    where: str = ""

    @property
    def sources(self) -> tuple[Member, ...]:
        """All inputs of the method."""
        return self.members if self.anchor is None else (self.anchor, *self.members)

    @property
    def is_sliced(self) -> bool:
        """Whether it is made of some layers of its sources."""
        return self.members[0].layers is not None


@dataclass(frozen=True)
class Roles:
    """Who takes part: ``models``, the inputs after the base as typed; ``base``, whatever its role."""

    sections: tuple[Section, ...]
    models: tuple[str, ...]
    base: str | None
    anchored: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Raw:
    """A section as the recipe has it."""

    where: str
    module: str | None
    base: str | None
    entries: Sequence[ModelEntry | SliceSource]
    levels: Levels


def _raw(recipe: Recipe) -> Iterator[_Raw]:
    top = recipe.parameters
    if recipe.modules is not None:
        for name, module in recipe.modules.items():
            where, levels = f"modules.{name}", (module.parameters, top)
            if module.models is not None:
                yield _Raw(where, name, recipe.base_model, module.models, levels)
            yield from _slices(module.slices or (), recipe, f"{where}.", name, levels)
    elif recipe.slices is not None:
        yield from _slices(recipe.slices, recipe, "", None, (top,))
    else:
        yield _Raw("", None, recipe.base_model, recipe.models, (top,))


def _slices(slices: Sequence[Slice], recipe: Recipe, where: str, module: str | None, levels: Levels) -> Iterator[_Raw]:
    for number, one in enumerate(slices):
        base = one.base_model or recipe.base_model
        yield _Raw(f"{where}slices.{number}", module, base, one.sources, (one.parameters, *levels))


def roles_of(recipe: Recipe, method: Method) -> Roles:
    """Which entries are ingredients, and what the base is to the method, in each section; problems of all at once."""
    raws = list(_raw(recipe))
    base = recipe.base_model or next((raw.base for raw in raws if raw.base is not None), None)
    first = 0 if base is None else 1
    models: list[str] = []
    notes: list[str] = []
    problems: list[errors.StockpotError] = []
    sections: list[Section] = []
    is_plain = recipe.slices is None and recipe.modules is None

    def number(ref: str, *, ingredient: bool = True) -> int:
        if ref == base and not ingredient:
            return 0
        if is_plain or ref not in models:
            models.append(ref)
        return len(models) - 1 + first if is_plain else models.index(ref) + first

    for raw in raws:
        try:
            anchor, entries, told = _parted(raw, method)
        except errors.StockpotError as error:
            problems.append(error)
            continue
        notes += told
        is_anchored = raw.base is not None and method.base != "unused"
        sections.append(
            Section(
                tuple(
                    Member(
                        number(one.model, ingredient=is_plain or not is_anchored),
                        one.model,
                        one.parameters,
                        _range(one),
                    )
                    for one in entries
                ),
                Member(number(raw.base, ingredient=False), raw.base, {}, None if anchor is None else _range(anchor))
                if raw.base is not None and is_anchored
                else None,
                raw.levels,
                raw.module,
                raw.where,
            )
        )
    if problems:
        raise errors.gathered(problems)
    anchored = sections[0].anchor is not None
    if any((section.anchor is not None) != anchored for section in sections):
        raise errors.RecipeError("some slices have a base and others have none", remedy="give all of them a base_model")
    return Roles(tuple(sections), tuple(models), base, anchored, tuple(dict.fromkeys(notes)))


def _range(entry: ModelEntry | SliceSource) -> tuple[int, int] | None:
    return entry.layer_range if isinstance(entry, SliceSource) else None


def _parted(raw: _Raw, method: Method) -> tuple[SliceSource | None, list[ModelEntry | SliceSource], list[str]]:
    """(the base's own entry in a slice, the ingredients, notes)."""
    base, entries, notes = raw.base, list(raw.entries), []
    at = f" in {raw.where}" if raw.where else ""
    is_sliced = isinstance(entries[0], SliceSource)
    anchor: SliceSource | None = None
    if method.base == "required" and base is None:
        raise errors.UsageError(f"{method.name} needs a base{at}", remedy="give --base, or base_model in the recipe")
    if method.base == "unused":
        if base is not None:
            notes.append(f"{method.name} uses no base: {base} serves as template only, never as an ingredient")
    elif base is not None and is_sliced:
        own = next((entry for entry in entries if entry.model == base), None)
        if own is None:
            raise errors.RecipeError(
                f"the base {base} has no layers{at}", remedy="list it in the slice's sources, with its layer_range"
            )
        assert isinstance(own, SliceSource)
        anchor = own
        entries = [entry for entry in entries if entry is not own]
    elif base is not None:
        if method.base == "required" and any(entry.model == base for entry in entries):
            notes.append("the base is also listed as a model: it is the anchor, not an ingredient")
        entries = [entry for entry in entries if entry.model != base]
    _require_number(method, len(entries), base is not None and method.base != "unused", at)
    return anchor, entries, notes


def _require_number(method: Method, found: int, anchored: bool, at: str) -> None:
    """As many ingredients as the method can take."""
    if method.base == "member" and found != (1 if anchored else 2):
        raise errors.MethodError(
            f"{method.name} takes two inputs{at}", expected="a base and one model, or two models",
            got=f"{found} models{' and a base' if anchored else ''}",
        )  # fmt: skip
    least, most = method.models
    if found < least or (most is not None and found > most):
        wanted = f"{least} or more" if most is None else str(least) if least == most else f"{least} to {most}"
        raise errors.MethodError(
            f"{method.name} cannot work on this number of models{at}"
            + (f": {method.why_models}" if method.why_models else ""),
            expected=f"{wanted} beside the base" if anchored else wanted,
            got=found,
        )
