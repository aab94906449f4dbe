"""What a method is, as data: a pure function and what the engine must know to call it.

Two kinds: of ``coefficients`` (the output is a linear combination of the inputs), and ``elementwise`` (a rule makes the
output from the elements themselves, see ``_rule.py``).

The function's signature is the method's parameter list; the command line, recipes and documentation read it here.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stockpot import errors
from stockpot.measure import GRANULARITIES, Array
from stockpot.methods._rule import Form, Rule

PER_MODEL = "one value for each model"
PerModel = Annotated[Sequence[float], PER_MODEL]
"""A parameter that takes one value, or a list in model order."""
PerModelText = Annotated[Sequence[str], PER_MODEL]
"""The same of words, such as paths."""

ONE_MODEL = "a model, by name or number"
ModelPlace = Annotated[int, ONE_MODEL]
"""A parameter that names one of the models; the method is told its place, from 0, or -1 for none."""

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?[eE][-+]?\d+|\.\d+([eE][-+]?\d+)?)")

BaseRole = Literal["required", "optional", "member", "unused"]
"""What ``--base`` is to a method: the anchor; the anchor if there is one; one of the ingredients; a template only."""
Needs = Literal["gram", "raw_gram", "span", "count", "form"]


@dataclass(frozen=True)
class Mixture:
    """What a coefficient method answers, for each group.

    ``weights``: shape ``(..., K)``, of the K inputs, reference first; the output is their linear combination.
    ``ratio``: how far from the anchor to the average, shape ``(...)``, NaN where nothing moved; None if the method has
    none. ``clamped`` and ``fallback``: where a rule of the method stepped in.
    """

    weights: Array
    ratio: Array | None = None
    clamped: NDArray[np.bool_] | None = None
    fallback: NDArray[np.bool_] | None = None


def repeated(mixture: Mixture, times: int) -> Mixture:
    """The same answer for that many groups."""

    def each(values: NDArray[Any] | None) -> Any:
        return None if values is None else np.repeat(np.asarray(values)[None], times, axis=0)

    return Mixture(each(mixture.weights), each(mixture.ratio), each(mixture.clamped), each(mixture.fallback))


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method, read from its signature."""

    name: str
    kind: type
    choices: tuple[str, ...]
    default: object
    per_model: bool
    required: bool
    of_model: bool = False

    def describe(self) -> str:
        """Type and default in words."""
        sort = ONE_MODEL if self.of_model else "|".join(self.choices) if self.choices else self.kind.__name__
        sort += " per model" if self.per_model else ""
        default = self.default[0] if isinstance(self.default, tuple) and len(self.default) == 1 else self.default
        return sort + (", required" if self.required else f", default {default}")


@dataclass(frozen=True)
class Statistics:
    """Files of values that a method takes beside the models, one for each of them.

    ``parameter``: where their paths are; ``kind``: what such a file says that it holds; ``streamed``: values have the
    tensors' shapes, and come as further rows behind the models', piece by piece (else they are asked for whole).
    """

    parameter: str
    kind: str
    streamed: bool


@dataclass(frozen=True)
class Method:
    """A method of the catalogue."""

    name: str
    function: Callable[..., Any]
    base: BaseRole
    models: tuple[int, int | None]
    needs: Needs
    granularity: str | None
    reference: str
    recipe_required: tuple[str, ...]
    affine: bool = True
    """Whether the weights sum to one whatever the inputs, so that moving all inputs moves the result alike."""
    why_models: str = ""
    random: bool = False
    """Whether it draws random numbers, by seed, tensor and position of the model."""
    scale_free: bool = True
    """Whether inputs scaled alike give a result scaled alike."""
    passes: int = 1
    """Of an element-wise method: how often it goes through the inputs, as a rule."""
    statistics: Statistics | None = None
    beside: str | None = None
    """Of a method that looks at all tensors first: the file that it writes beside the output."""

    @property
    def uses_gram(self) -> bool:
        """Whether a pass for inner products is needed."""
        return self.needs not in ("count", "form")

    @property
    def is_elementwise(self) -> bool:
        """Whether a rule makes the output, and not coefficients."""
        return self.needs == "form"

    def takes_raw(self, anchored: bool) -> bool:
        """Whether its inner products are those of the inputs themselves, not of differences from the first."""
        return self.needs == "raw_gram" or (self.needs == "span" and not anchored)

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.function) or "").splitlines()[0]

    @functools.cached_property
    def parameters(self) -> dict[str, Parameter]:
        """Its parameters by public name, in order (``lambda_`` in the code is ``lambda`` for users)."""
        hints = typing.get_type_hints(self.function, include_extras=True)
        found = {}
        for argument in inspect.signature(self.function).parameters.values():
            if argument.kind is inspect.Parameter.KEYWORD_ONLY:
                name = argument.name.rstrip("_")
                found[name] = _parameter(name, hints[argument.name], argument.default)
        if self.granularity is not None:
            found["granularity"] = Parameter("granularity", str, GRANULARITIES, self.granularity, False, False)
            found["block_regex"] = Parameter("block_regex", str, (), None, False, False)
        return found

    def __call__(self, first: Any, values: Mapping[str, object], *, anchored: bool = False) -> Mixture:
        """Call the function on a Gram matrix (or a number of inputs) with checked values by public name.

        ``anchored``: whether the first input is a base that the method may do without. It is then given the inner
        products of the differences alone, and the base keeps what its weights leave to one.
        """
        apart = anchored and self.needs == "span"
        takes = self._takes
        given = {takes[name]: value for name, value in values.items() if name in takes}
        found: Mixture = self.function(first[..., 1:, 1:] if apart else first, **given)
        if not apart:
            return found
        rest = 1.0 - found.weights.sum(axis=-1, keepdims=True)
        return replace(found, weights=np.concatenate([rest, found.weights], axis=-1))

    def rule(self, form: Form, values: Mapping[str, object]) -> Rule:
        """What makes a tensor of that form, of an element-wise method, with checked values by public name."""
        takes = self._takes
        rule: Rule = self.function(form, **{takes[name]: value for name, value in values.items() if name in takes})
        return rule

    def check(self, inputs: int, values: Mapping[str, object]) -> None:
        """Raise what the values alone are refused for, whatever the weights are; ``inputs`` counts the base."""
        if self.is_elementwise:
            anchored = self.base != "unused"
            self.rule(Form("", (), inputs - anchored, anchored, 0), values)
        elif not self.uses_gram:
            self(inputs, values)

    @functools.cached_property
    def _takes(self) -> dict[str, str]:
        """The function's arguments by public name."""
        return {name.rstrip("_"): name for name in inspect.signature(self.function).parameters}


def coefficients(
    *,
    base: BaseRole,
    models: tuple[int, int | None],
    reference: str,
    granularity: str | None = None,
    recipe_required: tuple[str, ...] = (),
    affine: bool = True,
    why_models: str = "",
) -> Callable[[Callable[..., Mixture]], Method]:
    """Make a method of kind 1 (linear combination) from its function.

    The function's first argument is named ``gram`` (inner products of the reference and of the differences from it),
    ``raw_gram`` (of the inputs themselves), ``span`` (of the differences from the base, which is left out; of the
    inputs themselves where there is no base) or ``count`` (the number of inputs, for methods that need no pass over
    the weights).
    """

    def make(function: Callable[..., Mixture]) -> Method:
        first = next(iter(inspect.signature(function).parameters))
        assert first in typing.get_args(Needs), f"the first argument of a method cannot be {first}"
        return Method(
            function.__name__,
            function,
            base,
            models,
            typing.cast(Needs, first),
            granularity,
            reference,
            recipe_required,
            affine,
            why_models,
        )

    return make


def elementwise(
    *,
    base: BaseRole,
    models: tuple[int, int | None],
    reference: str,
    recipe_required: tuple[str, ...] = (),
    affine: bool = True,
    why_models: str = "",
    random: bool = False,
    scale_free: bool = True,
    passes: int = 1,
    statistics: Statistics | None = None,
    beside: str | None = None,
) -> Callable[[Callable[..., Rule]], Method]:
    """Make a method of kind 2 from its function: (form of a tensor, parameters) -> the rule that makes it.

    The function's first argument is named ``form``. It checks the parameters, and looks at no element.
    """

    def make(function: Callable[..., Rule]) -> Method:
        assert next(iter(inspect.signature(function).parameters)) == "form"
        return Method(
            function.__name__, function, base, models, "form", None, reference, recipe_required, affine, why_models,
            random, scale_free, passes, statistics, beside,
        )  # fmt: skip

    return make


def each(weight: PerModel, count: int) -> Array:
    """One weight for each model; a single one serves all."""
    return np.array(list(weight) * count if len(weight) == 1 else list(weight), dtype=np.float64)


def shares(method: str, name: str, values: PerModel, count: int) -> tuple[float, ...]:
    """One share from 0 to 1 for each model; ParameterError for anything else."""
    found = tuple(float(one) for one in each(values, count))
    for one in found:
        if not 0.0 <= one <= 1.0:
            raise errors.ParameterError(f"{name} of {method} is a share", expected="0 to 1", got=one)
    return found


def normalized(method: str, weights: Array, *, switch: str | None = "normalize") -> Array:
    """Weights that sum to one; ParameterError where they sum to zero. ``switch``: what leaves them as they are."""
    total = math.fsum(weights)
    if abs(total) <= 1e-12 * math.fsum(abs(weights)):
        raise errors.ParameterError(
            f"the weights of {method} sum to zero",
            got=weights.tolist(),
            remedy=f"set {switch}=false, or other weights" if switch else "set other weights",
        )
    return weights / total


def _parameter(name: str, hint: Any, default: object) -> Parameter:
    told = typing.get_args(hint) if typing.get_origin(hint) is Annotated else ()
    if ONE_MODEL in told:
        return Parameter(name, str, (), None, False, False, of_model=True)
    per_model = PER_MODEL in told
    choices: tuple[str, ...] = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    kind = typing.get_args(typing.get_args(hint)[0])[0] if per_model else str if choices else hint
    required = default is inspect.Parameter.empty
    return Parameter(name, kind, choices, None if required else default, per_model, required)


def check_value(method: str, parameter: Parameter, value: object, models: int) -> object:
    """The value in its declared type, or ParameterError; a per-model parameter becomes a tuple of that length."""
    if parameter.per_model:
        values = list(value) if isinstance(value, list | tuple) else [value] * models
        if len(values) != models:
            raise errors.ParameterError(
                f"{parameter.name} of {method} needs one value, or one for each model",
                expected=f"{models} values",
                got=len(values),
            )
        return tuple(_scalar(method, parameter, one) for one in values)
    return _scalar(method, parameter, value)


def _scalar(method: str, parameter: Parameter, value: object) -> object:
    if value is None and not parameter.required and parameter.default is None:
        return None
    if value is None and parameter.required:
        raise errors.ParameterError(
            f"{method} needs {parameter.name}",
            expected=parameter.describe(),
            remedy=f"give --set {parameter.name}=VALUE",
        )
    good: object = None
    if parameter.of_model and type(value) is int:
        value = str(value)
    if isinstance(value, str) and parameter.kind is float and _NUMBER.fullmatch(value):
        value = float(value)  # YAML 1.1 takes 1e-1 and -.5 for text
    if parameter.kind is bool and isinstance(value, bool):
        return value
    if parameter.kind is str and isinstance(value, str):
        good = value if not parameter.choices or value in parameter.choices else None
    elif parameter.kind is int and type(value) is int:
        good = value
    elif parameter.kind is float and type(value) in (int, float) and math.isfinite(typing.cast(float, value)):
        good = float(typing.cast(float, value))
    if good is None:
        close = errors.nearest(value, parameter.choices) if isinstance(value, str) and parameter.choices else None
        raise errors.ParameterError(
            f"{parameter.name} of {method} cannot be {value!r}",
            expected=parameter.describe(),
            remedy=f"did you mean {close}?" if close else None,
        )
    return good
