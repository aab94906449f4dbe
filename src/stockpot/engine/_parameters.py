"""The parameters of a method as a recipe states them: known ones kept, and the values for one tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stockpot import errors
from stockpot.engine._sections import Section
from stockpot.engine._switches import SWITCHES, read_switches
from stockpot.methods import Method, Parameter, all_methods, check_value
from stockpot.recipe import IGNORED_PARAMETERS, Recipe, Setting, cases_of, is_constant, scalars_of, value_at

_OF_GROUPS = ("granularity", "block_regex")


def known_alone(recipe: Recipe, method: Method, *, from_file: bool, lenient: bool) -> tuple[Recipe, list[str]]:
    """Take foreign and misplaced parameters out; say so once each. All unknown ones are told at once."""
    recipe, warnings = read_switches(recipe, method)
    unknown: list[errors.StockpotError] = []
    known = method.parameters
    elsewhere = {name for other in all_methods().values() for name in other.parameters}.union(SWITCHES)
    granularity, rank = recipe.granularity, recipe.rank

    def keep(parameters: Mapping[str, Any], where: str) -> dict[str, Any]:
        nonlocal granularity, rank
        kept = {}
        for name, value in parameters.items():
            if name in _OF_GROUPS and name in known and where:
                unknown.append(
                    errors.UsageError(f"{name} is one for all tensors{where}", remedy="state it at the top level")
                )
            elif name == "granularity" and method.granularity is not None:
                granularity = granularity or str(value)
            elif name in known:
                kept[name] = value
            elif name == "rank":
                if type(value) is not int or value < 1:
                    raise errors.ParameterError("rank is a whole number", expected="1 or more", got=repr(value))
                rank = value
            elif name in IGNORED_PARAMETERS:
                warnings.append(f"{name} has no effect here")
            elif from_file and name in elsewhere:
                warnings.append(f"{name} is no parameter of {method.name}: ignored")
            else:
                error = errors.unknown_name(f"parameter of {method.name}{where}", name, known)
                if lenient:
                    warnings.append(f"ignored: {error.line()}")
                else:
                    unknown.append(error)
        return kept

    changed = recipe.reparametrized(keep)
    if unknown:
        raise errors.gathered(unknown)
    return (
        changed.model_copy(update={"merge_method": method.name, "granularity": granularity, "rank": rank}),
        list(dict.fromkeys(warnings)),
    )


@dataclass(frozen=True)
class Valued:
    """What a recipe says of the parameters of a method, to be asked for a tensor's values.

    ``overrides``: (pattern, parameters), the first that is found in a name wins over all else. ``must_state``: whether
    parameters that recipes of the field must state have no default.
    """

    method: Method
    overrides: tuple[tuple[str, Mapping[str, Setting]], ...]
    must_state: bool

    @property
    def _parameters(self) -> Iterator[Parameter]:
        return (one for one in self.method.parameters.values() if one.name not in _OF_GROUPS)

    def problems(self, sections: Sequence[Section]) -> Iterator[errors.StockpotError]:
        """What can be told without a tensor: values of a wrong kind, values that nobody states."""
        told: set[str] = set()
        if (pattern := sections[0].levels[-1].get("block_regex")) is not None:
            try:
                check_value(self.method.name, self.method.parameters["block_regex"], pattern, 1)
            except errors.ParameterError as wrong:
                yield wrong
        for section in sections:
            for error in self._problems(section):
                if error.line() not in told:
                    told.add(error.line())
                    yield error

    def _problems(self, section: Section) -> Iterator[errors.StockpotError]:
        stated: list[Mapping[str, Setting]] = [member.parameters for member in section.members]
        stated += [*section.levels, *(own for _, own in self.overrides)]
        for parameter in self._parameters:
            for own in stated:
                for value in scalars_of(own[parameter.name]) if parameter.name in own else ():
                    try:
                        check_value(self.method.name, parameter, value, 1)
                    except errors.ParameterError as error:
                        yield error
            if not parameter.per_model and parameter.required and not any(parameter.name in own for own in stated):
                yield errors.ParameterError(
                    f"{self.method.name} needs {parameter.name}", expected=parameter.describe(),
                    remedy=f"give --set {parameter.name}=VALUE",
                )  # fmt: skip
            if parameter.per_model and self._must_be_stated(parameter):
                shared = any(parameter.name in own for own in (*section.levels, *(own for _, own in self.overrides)))
                lacking = [
                    member for member in section.members if not shared and parameter.name not in member.parameters
                ]
                if parameter.required and len(lacking) == len(section.members):
                    yield self._needed(parameter)
                    continue
                for member in lacking:
                    yield self._not_given(parameter.name, member.ref)

    def _must_be_stated(self, parameter: Parameter) -> bool:
        return parameter.required or (self.must_state and parameter.name in self.method.recipe_required)

    def _needed(self, parameter: Parameter) -> errors.ParameterError:
        wanted, remedy = self.method.statistics, f"give --set {parameter.name}=[VALUE, ..], one for each model"
        if wanted is not None and wanted.parameter == parameter.name:
            remedy += f": the files of stockpot collect {wanted.kind}"
        return errors.ParameterError(
            f"{self.method.name} needs {parameter.name}", expected=parameter.describe(), remedy=remedy
        )

    def _not_given(self, name: str, ref: str, tensor: str | None = None) -> errors.RecipeError:
        return errors.RecipeError(f"{name} of {self.method.name} is not given for model {ref}", tensor=tensor)

    def is_constant(self, section: Section) -> bool:
        """Whether all tensors of a section have the same values."""
        names = [parameter.name for parameter in self._parameters]
        stated = (*(member.parameters for member in section.members), *section.levels)
        return not self.overrides and all(is_constant(own[name]) for own in stated for name in names if name in own)

    def varying(self, sections: Sequence[Section]) -> list[str]:
        """Parameters that are not the same for all tensors."""
        found = []
        for parameter in self._parameters:
            name = parameter.name
            stated = [own for one in sections for own in (*(m.parameters for m in one.members), *one.levels)]
            if any(name in own and not is_constant(own[name]) for own in stated) or any(
                name in own for _, own in self.overrides
            ):
                found.append(name)
        return found

    def filters(self, sections: Sequence[Section]) -> set[str]:
        """Every filter that is written."""
        stated = [own for one in sections for own in (*(m.parameters for m in one.members), *one.levels)]
        stated += [own for _, own in self.overrides]
        return {part for own in stated for setting in own.values() for part, _ in cases_of(setting)}

    def at(
        self,
        section: Section,
        name: str,
        names: Sequence[str],
        place: float,
        override: Mapping[str, Setting] | None = None,
        only: Collection[str] | None = None,
    ) -> dict[str, object]:
        """The values for a tensor, unchecked: per-model ones as a tuple.

        ``name``: of no tensor in particular where it is empty. ``names``: what each member calls the tensor, which is
        what its filters are held against; ``place``: where its layer lies, 0 to 1; ``override``: parameters that win.
        ``only``: of these parameters. Raises RecipeError where none is stated.
        """
        values: dict[str, object] = {}
        for parameter in self._parameters:
            key = parameter.name
            if only is not None and key not in only:
                continue
            won = None if override is None or key not in override else value_at(override[key], name, place)
            default = parameter.default[0] if isinstance(parameter.default, tuple) else parameter.default
            if parameter.per_model:
                each = []
                for member, own in zip(section.members, names, strict=True):
                    value = won if won is not None else _first(key, (member.parameters, *section.levels), own, place)
                    if value is None and name and self._must_be_stated(parameter):
                        raise self._not_given(key, member.ref, name)
                    each.append(default if value is None else value)
                values[key] = tuple(each)
                continue
            value = won
            if value is None:
                own_values = (
                    _first(key, (m.parameters,), n, place) for m, n in zip(section.members, names, strict=True)
                )
                stated = [one for one in own_values if one is not None]
                if any(one != stated[0] for one in stated):
                    raise errors.ParameterError(f"{key} of {self.method.name} is one value for all models", got=stated)
                value = stated[0] if stated else _first(key, section.levels, name, place)
            if value is None and name and parameter.required:
                raise errors.RecipeError(f"{key} of {self.method.name} is not given", tensor=name)
            values[key] = default if value is None else value
        return values

    def checked(self, values: Mapping[str, object], section: Section) -> dict[str, object]:
        """The same values in their declared types; where one names a model, its place among the section's."""
        found: dict[str, object] = {}
        for name, value in values.items():
            known = self.method.parameters[name]
            if value is not known.default:
                value = check_value(self.method.name, known, value, len(section.members))
            found[name] = self._place(name, value, section) if known.of_model else value
        return found

    def _place(self, parameter: str, value: object, section: Section) -> int:
        """From 0, of the model of that number from 1, that was typed so, or whose path alone ends so; -1 for none."""
        if value is None:
            return -1
        name, models = str(value), [member.ref for member in section.members]
        if name.isdecimal() and 1 <= int(name) <= len(models):
            return int(name) - 1
        same = [place for place, model in enumerate(models) if model == name]
        same = same or [place for place, model in enumerate(models) if Path(model).name == name]
        if len(same) != 1:
            raise errors.unknown_name(f"model ({parameter} of {self.method.name})", name, models)
        return same[0]


def _first(key: str, levels: Sequence[Mapping[str, Setting]], name: str, place: float) -> Any:
    """From the first level that has a value for the tensor."""
    for own in levels:
        if key in own and (value := value_at(own[key], name, place)) is not None:
            return value
    return None
