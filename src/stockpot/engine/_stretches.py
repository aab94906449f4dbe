"""Sections held against the names of their sources: which tensor of the output is which of theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from stockpot import errors
from stockpot.checkpoint import Source, TensorInfo
from stockpot.engine._job import Job
from stockpot.engine._layers import Layers, is_before_layers, place_of, split_layer, stated_counts
from stockpot.engine._modules import prefixes_of
from stockpot.engine._sections import Member, Section
from stockpot.engine._slots import Inputs, View


@dataclass(frozen=True)
class Stack:
    """Layers of the output: ``layers[n]`` is (input, layer there) that the n-th one comes from first of all.

    ``prefix``: what stands before their numbers; ``before``: how many the template's configuration speaks of, by input.
    """

    prefix: str
    layers: tuple[tuple[int, int], ...]
    counts: Mapping[int, int]


@dataclass(frozen=True)
class Stretch:
    """A section's inputs as checkpoints of their own numbers, seen by the names of the output.

    ``numbers``: from these to the numbers of all inputs. ``own_names``: by input, what it calls a tensor, where that is
    another name. ``layers``: of a section that is not sliced. ``places``: of one that is, by name.
    """

    section: Section
    inputs: Inputs
    views: Sequence[View]
    numbers: Sequence[int]
    own_names: Sequence[Mapping[str, str]]
    layers: Layers | None = None
    places: Mapping[str, float] = field(default_factory=dict)

    def place(self, name: str) -> float:
        """Where a tensor's layer lies, 0 to 1."""
        return self.layers.place(name) if self.layers is not None else self.places.get(name, 0.0)

    def names(self, name: str) -> list[str]:
        """What each member calls a tensor of the output."""
        first = self.inputs.first_model
        return [self.own_names[n].get(name, name) for n in range(first, first + len(self.section.members))]


def whole(job: Job, inputs: Inputs, views: Sequence[View]) -> Stretch:
    """All of the output, from all inputs under their own names."""
    section = job.sections[0]
    layers = None
    if not job.valued.is_constant(section):
        layers = Layers.of(name for number in inputs.models for name in views[number])
    return Stretch(section, inputs, views, range(len(views)), [{}] * len(views), layers)


def stretches_of(
    job: Job, inputs: Inputs, views: Sequence[View], aliases: Mapping[str, str]
) -> tuple[list[Stretch], list[Stack]]:
    """Of a recipe of slices or modules, one for each section; raises AlignmentError with every problem at once."""
    problems: list[errors.StockpotError] = []
    found: list[Stretch] = []
    stacks: list[Stack] = []
    by_module: dict[str | None, list[Section]] = {}
    for section in job.sections:
        by_module.setdefault(section.module, []).append(section)
    for sections in by_module.values():
        try:
            if not sections[0].is_sliced:
                found.append(_of_module(inputs, views, aliases, sections[0]))
                continue
            stack = _Stacking(inputs, views, aliases, sections)
            found += stack.stretches()
            stacks.append(stack.stack())
        except errors.StockpotError as error:
            problems.append(error)
    if problems:
        raise errors.gathered(problems)
    return found, stacks


def _local(inputs: Inputs, section: Section) -> Inputs:
    return Inputs(tuple(inputs.checkpoints[one.input] for one in section.sources), section.anchor is not None)


def _scoped(view: View, prefixes: tuple[str, ...]) -> Iterator[str]:
    return (name for name in view if name.startswith(prefixes))


def scope_of(section: Section, views: Sequence[View]) -> tuple[str, ...]:
    """What names of a section's tensors begin with; MissingTensorError where its module is not there."""
    view = views[section.members[0].input]
    prefixes = prefixes_of(section.module, view)
    if not prefixes:
        tops = dict.fromkeys(name.partition(".")[0] for name in view)
        raise errors.MissingTensorError(
            f"there is no module {section.module}", file=section.members[0].ref,
            expected=f"one of {', '.join([*tops][:8])}", remedy="name it as its tensors' names begin",
        )  # fmt: skip
    return prefixes


def _of_module(inputs: Inputs, views: Sequence[View], aliases: Mapping[str, str], section: Section) -> Stretch:
    prefixes = scope_of(section, views)
    own = [{name: views[one.input][name] for name in _scoped(views[one.input], prefixes)} for one in section.sources]
    layers = Layers.of(name for view in own for name in view)
    numbers = [one.input for one in section.sources]
    return Stretch(section, _local(inputs, section), own, numbers, [{}] * len(own), layers)


class _Stacking:
    """The slices of a model or module."""

    def __init__(
        self, inputs: Inputs, views: Sequence[View], aliases: Mapping[str, str], sections: Sequence[Section]
    ) -> None:
        self.inputs, self.views, self.aliases, self.sections = inputs, views, aliases, sections
        self.scope = scope_of(sections[0], views)
        self.prefix = self._prefix(sections[0].members[0])
        self.by_layer: dict[int, dict[int, list[tuple[str, str]]]] = {}
        """Of each input, (name, what follows the number) of each layer's tensors."""
        self.outside: dict[int, list[str]] = {}
        """Of each input, names outside the layers."""
        self.counts: dict[int, int] = {}

    def _prefix(self, member: Member) -> str:
        layers = Layers.of(_scoped(self.views[member.input], self.scope))
        if not layers.counts:
            raise errors.AlignmentError("slices need layers, and no names of tensors have numbers", file=member.ref)
        if len(layers.counts) > 1:
            raise errors.AlignmentError(
                "slices of a model with several lists of layers", file=member.ref,
                got=", ".join(prefix.rstrip(".") for prefix in layers.counts), remedy="say in modules which is meant",
            )  # fmt: skip
        return next(iter(layers.counts))

    def _index(self, number: int) -> None:
        """Sort an input's names by layer, once."""
        if number in self.counts:
            return
        layers: dict[int, list[tuple[str, str]]] = {}
        outside = []
        for name in _scoped(self.views[number], self.scope):
            found = split_layer(name)
            if found is None or found[0] != self.prefix:
                outside.append(name)
            else:
                layers.setdefault(found[1], []).append((name, found[2]))
        self.by_layer[number], self.outside[number] = layers, outside
        self.counts[number] = max(layers, default=-1) + 1

    def stretches(self) -> list[Stretch]:
        """One for each slice; AlignmentError for layers that are not there, all of them at once."""
        problems: list[errors.StockpotError] = []
        for section in self.sections:
            for member in section.sources:
                self._index(member.input)
                if (problem := self._problem(section, member)) is not None:
                    problems.append(problem)
        if problems:
            raise errors.gathered(problems)
        found, offset = [], 0
        for place, section in enumerate(self.sections):
            found.append(self._stretch(section, offset, place == 0, place == len(self.sections) - 1))
            offset += _length(section)
        return found

    def _problem(self, section: Section, member: Member) -> errors.StockpotError | None:
        count = self.counts[member.input]
        source: Source = self.inputs.checkpoints[member.input]
        assert member.layers is not None
        if not count:
            return errors.AlignmentError(f"there are no layers {self.prefix}N", file=member.ref)
        stated = set().union(*(stated_counts(part.config) for part in source.parts))
        if stated and count not in stated:
            return errors.AlignmentError(
                "the layers are not those of the configuration", file=member.ref,
                expected=f"{' or '.join(map(str, sorted(stated)))} layers", got=f"{count} by the names of tensors",
            )  # fmt: skip
        if member.layers[1] > count:
            return errors.RecipeError(
                f"layer_range {list(member.layers)} of {section.where} goes beyond the layers of {member.ref}",
                expected=f"at most {count}", got=member.layers[1],
            )  # fmt: skip
        return None

    def _stretch(self, section: Section, offset: int, is_first: bool, is_last: bool) -> Stretch:
        views: list[dict[str, TensorInfo]] = []
        own_names: list[dict[str, str]] = []
        places: dict[str, float] = {}
        length = _length(section)
        for member in section.sources:
            assert member.layers is not None
            view, view_names, known = {}, {}, self.views[member.input]
            for step in range(length):
                for name, rest in self.by_layer[member.input].get(member.layers[0] + step, ()):
                    new = f"{self.prefix}{offset + step}{rest}"
                    view[new], view_names[new] = known[name], name
                    places[new] = place_of(step, length)
            for name in self.outside[member.input]:
                if is_first if is_before_layers(self.aliases.get(name, name)) else is_last:
                    view[name] = known[name]
            views.append(view)
            own_names.append(view_names)
        numbers = [one.input for one in section.sources]
        return Stretch(section, _local(self.inputs, section), views, numbers, own_names, None, places)

    def stack(self) -> Stack:
        """Where each layer of the output comes from."""
        layers = []
        for section in self.sections:
            member = section.sources[0]
            assert member.layers is not None
            layers += [(member.input, layer) for layer in range(*member.layers)]
        return Stack(self.prefix, tuple(layers), self.counts)


def _length(section: Section) -> int:
    layers = section.members[0].layers
    assert layers is not None
    return layers[1] - layers[0]
