"""The models of a study, opened once, and recipes over some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockpot import engine, errors
from stockpot.adapters import open_source
from stockpot.checkpoint import Source
from stockpot.measure import Array
from stockpot.recipe import Mismatch, Missing, Recipe, build_recipe

if TYPE_CHECKING:
    from torch import Tensor

Model = str | Path | Mapping[str, "Tensor"]
"""A folder, a file, a Hub id, or a state dict in memory."""


@dataclass(frozen=True)
class Correspondence:
    """Which tensors take part, and what happens to those that do not correspond: as the options of ``merge``."""

    only: Sequence[str] = ()
    exclude: Sequence[str] = ()
    rename: Sequence[str] = ()
    missing: Missing = "error"
    mismatch: Mismatch = "error"
    dtype: str | None = None


@dataclass(frozen=True)
class Ingredients:
    """Models in the user's order, and their base where there is one; ``sources`` by name."""

    models: tuple[str, ...]
    base: str | None
    sources: Mapping[str, Source] = field(repr=False)
    correspondence: Correspondence = field(default_factory=Correspondence)
    pinned: bool = False
    """Every mixture names all models, some with weight zero: what is not mixed is then the same in all of them."""

    @classmethod
    def open(
        cls, models: Sequence[Model], base: Model | None = None, correspondence: Correspondence | None = None
    ) -> Ingredients:
        """Open everything by its headers; a model that stands twice is refused."""
        if isinstance(models, str | Path | Mapping):
            raise errors.UsageError("models are a list", got=type(models).__name__, remedy="put it into one")
        models = list(models)
        if not models:
            raise errors.UsageError("there are no models", expected="at least one", got=0)
        sources: dict[str, Source] = {}
        names = [_opened(model, f"model {number}", sources) for number, model in enumerate(models, start=1)]
        places = [str(Path(name).resolve()) if Path(name).exists() else name for name in names]
        twice = next((names[place] for place, one in enumerate(places) if one in places[:place]), None)
        if twice is not None:
            raise errors.UsageError("a model stands twice in the list", file=twice, remedy="leave one out")
        found = None if base is None else _opened(base, "base", sources)
        if found in names:
            raise errors.UsageError("the base is also listed as a model", file=found, remedy="leave it out of the list")
        opened = cls(tuple(names), found, sources, correspondence or Correspondence())
        if not any(source.commit for source in sources.values()):
            return opened
        opened._require_correspondence()
        return replace(opened, sources=engine.fetched_sources(sources))

    def _require_correspondence(self) -> None:
        """Refuse what cannot be mixed before any of it is downloaded."""
        everyone = range(len(self.models))
        recipe = self.recipe("linear", everyone) if self.base is None else self.from_base([1.0] * len(self.models))
        job = engine.resolve(recipe)
        inputs = engine.open_inputs(job, self.sources)
        engine.make_plan(job, inputs, Path("memory"), memory=1 << 28, workers=1)

    def recipe(
        self,
        method: str,
        members: Sequence[int],
        parameters: Mapping[str, Any] | None = None,
        *,
        granularity: str | None = None,
    ) -> Recipe:
        """A recipe over the models of these numbers, from 0, in this order; the base only where it has a part."""
        same = self.correspondence
        has_part = self.base is not None and (method != "linear" or "base" in (same.missing, same.mismatch))
        return build_recipe(
            method,
            base=self.base if has_part else None,
            models=[self.models[number] for number in members],
            parameters=parameters,
            granularity=granularity,
            only=same.only,
            exclude=same.exclude,
            rename=_renumbered(same.rename, members, with_base=has_part),
            missing=same.missing,
            mismatch=same.mismatch,
            dtype=same.dtype,
        )

    def average(self, members: Sequence[int], weights: Sequence[float] | None = None) -> Recipe:
        """Their mean, or their sum with these weights."""
        if self.pinned:
            given = dict(zip(members, weights or [1.0 / len(members)] * len(members), strict=True))
            everyone = range(len(self.models))
            all_weights = [given.get(number, 0.0) for number in everyone]
            return self.recipe("linear", everyone, {"weight": all_weights, "normalize": False})
        if weights is None:
            return self.recipe("linear", members)
        return self.recipe("linear", members, {"weight": list(weights), "normalize": False})

    def mixture(self, weights: Array, names: Sequence[str] = ()) -> Recipe:
        """The sum of all models with these weights, shape ``(N,)``, or of each tensor by name: ``(tensors, N)``."""
        if weights.ndim == 1:
            return self.average(range(len(self.models)), weights.tolist())
        recipe = self.recipe("linear", range(len(self.models)))
        entries = [
            entry.model_copy(update={"tensor_weights": dict(zip(names, weights[:, number].tolist(), strict=True))})
            for number, entry in enumerate(recipe.models)
        ]
        return recipe.model_copy(update={"models": tuple(entries)})

    def against(self, name: str, number: int) -> Recipe:
        """A recipe of the source of that name and one model, for what the two have in common."""
        same = self.correspondence
        own = _renumbered(same.rename, [number], with_base=False)
        renames = [text if not _numbered(text) else f"2:{text.partition(':')[2]}" for text in own]
        return build_recipe(
            "products", base=None, models=[name, self.models[number]], only=same.only, exclude=same.exclude,
            rename=renames, missing="average", mismatch="first",
        )  # fmt: skip

    def from_base(self, weights: Sequence[float]) -> Recipe:
        """w0 + sum_i weights_i (w_i - w0); models of weight zero are not read."""
        members = [number for number, weight in enumerate(weights) if weight or self.pinned]
        if not members:
            return self.base_alone()
        return self.recipe("task_arithmetic", members, {"weight": [weights[number] for number in members]})

    def base_alone(self) -> Recipe:
        """The base, as it is."""
        assert self.base is not None
        if self.pinned:
            return self.from_base([0.0] * len(self.models))
        renames = [text.removeprefix("base:") for text in self.correspondence.rename if not _numbered(text)]
        same = replace(self.correspondence, rename=renames)
        return Ingredients((self.base,), None, self.sources, same).recipe("linear", [0])


def _opened(model: Model, name: str, sources: dict[str, Source]) -> str:
    if isinstance(model, Mapping):
        sources[name] = engine.MemorySource(model, name)
        return name
    if not isinstance(model, str | Path):
        raise errors.UsageError(
            "neither a path nor a state dict",
            file=name,
            got=type(model).__name__,
            remedy="of a module, its state_dict()",
        )
    if str(model) not in sources:
        sources[str(model)] = open_source(model)
    return str(model)


def _numbered(rename: str) -> bool:
    """Whether it is for one model alone."""
    return rename.partition(":")[0].isdecimal()


def _renumbered(renames: Sequence[str], members: Sequence[int], *, with_base: bool) -> list[str]:
    """``N:`` of a rename counts the models of the study: told by their places among the members."""
    places = {str(number + 1): str(place + 1) for place, number in enumerate(members)}
    found = []
    for text in renames:
        who, _, rest = text.partition(":")
        if not _numbered(text):
            found += [text] if with_base or who != "base" else []
        elif who in places:
            found.append(f"{places[who]}:{rest}")
    return found
