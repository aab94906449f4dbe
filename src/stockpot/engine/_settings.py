"""The different parameters that the tensors of a merge have, each kept once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from stockpot import errors
from stockpot.engine._job import Job
from stockpot.engine._stretches import Stretch
from stockpot.engine._watch import Watch
from stockpot.recipe import EVERYTHING, Setting


class Settings:
    """Filled tensor by tensor; ``found[number]`` are the values. Cost: constant for each tensor."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._numbers: dict[tuple[object, ...], int] = {}
        self._of_section: dict[int, int] = {}
        self._parts: dict[int, tuple[Mapping[str, object], Sequence[str]]] = {}
        """By section: values of which some are the same for all of its tensors, and the names of the others."""
        self._found: list[Mapping[str, object]] = []
        self._watch = Watch("overrides")
        self._hit = [False] * len(job.valued.overrides)

    @property
    def found(self) -> tuple[Mapping[str, object], ...]:
        """All of them."""
        return tuple(self._found)

    def number(self, stretch: Stretch, name: str) -> int:
        """Which values a tensor has; raises RecipeError or ParameterError where it has none."""
        section = stretch.section
        if (known := self._of_section.get(id(section))) is not None:
            return known
        job = self._job
        override = self._override(name)
        steady, varying = self._parts.get(id(section), ({}, None))
        own = job.valued.at(section, name, stretch.names(name), stretch.place(name), override, varying)
        values = {**steady, **own}
        if varying is None:
            self._parts[id(section)] = values, job.valued.varying([section])
        key = (len(section.sources), *((one, type(one)) for one in values.values()))
        number = self._numbers.get(key)
        if number is None:
            try:
                checked = job.valued.checked(values, section)
                job.require_answer(section, checked)
            except errors.StockpotError as error:
                error.tensor = error.tensor or name
                raise
            number = self._numbers[key] = len(self._found)
            self._found.append(checked)
        if job.valued.is_constant(section):
            self._of_section[id(section)] = number
        return number

    def _override(self, name: str) -> Mapping[str, Setting] | None:
        """Of the first regular expression that is found in the name."""
        won = None
        for place, (pattern, parameters) in enumerate(self._job.valued.overrides):
            if self._watch.search(pattern, name):
                self._hit[place] = True
                won = parameters if won is None else won
        return won

    def notes(self, names: Iterable[str]) -> list[str]:
        """Filters that no tensor passes; raises UsageError for an override without a tensor."""
        for (pattern, _), hit in zip(self._job.valued.overrides, self._hit, strict=True):
            if not hit:
                raise errors.UsageError(
                    f"overrides: {pattern!r} matches no merged tensor", remedy="merge --dry-run --json lists the names"
                )
        if self._job.is_even:
            return []
        filters = self._job.valued.filters(self._job.sections) - {EVERYTHING}
        lacking = sorted(filters)
        for name in names:
            if not lacking:
                break
            lacking = [part for part in lacking if part not in name]
        return [f"the filter {part!r} is no part of any tensor's name: without effect" for part in lacking]
