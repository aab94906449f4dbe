"""Several documents in one file: merges that take one another's results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from stockpot import errors
from stockpot.recipe._recipe import Recipe, read, text_of, unusable
from stockpot.recipe._yaml import load_yaml

DOCUMENTS_CAP = 200


@dataclass(frozen=True)
class Graph:
    """Merges in an order in which each comes after those whose results it takes; the last one is the result.

    ``warnings``: what a lenient reader left out. ``problem``: keys that nobody knows, where only they are wrong, and
    the rest can be looked at too.
    """

    recipes: tuple[Recipe, ...]
    warnings: tuple[str, ...] = ()
    problem: errors.RecipeError | None = None

    @property
    def result(self) -> Recipe:
        """What the file is for."""
        return self.recipes[-1]

    @property
    def parts(self) -> tuple[Recipe, ...]:
        """The merges whose results others take, or that are only made."""
        return self.recipes[:-1]

    @classmethod
    def from_file(cls, path: str | Path, *, lenient: bool = False) -> Graph:
        """Read a file of one or several documents; RecipeError lists every problem of all of them.

        Where keys are wrong and nothing else, that is kept as ``problem``, to be told with what its plan finds.
        """
        text, source = text_of(path), str(path)
        try:
            return cls.from_yaml(text, source, lenient=lenient)
        except errors.RecipeError as error:
            try:
                return replace(cls.from_yaml(text, source, lenient=True), problem=error)
            except errors.RecipeError:
                raise error from None

    @classmethod
    def from_yaml(cls, text: str, source: str = "recipe", *, lenient: bool = False) -> Graph:
        """Read one or several documents; ``lenient``: unknown keys are left out, and told.

        >>> text = "{name: half, merge_method: passthrough, models: [{model: a}]}\\n---\\n"
        >>> graph = Graph.from_yaml(text + "{merge_method: passthrough, models: [{model: half}]}")
        >>> [recipe.name for recipe in graph.recipes]
        ['half', None]
        """
        documents = [one for one in load_yaml(text, source) if one is not None]
        if not documents:
            raise errors.RecipeError("a recipe is at least one YAML document", file=source, got="0 documents")
        if len(documents) > DOCUMENTS_CAP:
            raise errors.RecipeError(
                "absurdly many documents", file=source, expected=f"at most {DOCUMENTS_CAP}", got=len(documents)
            )
        recipes: list[Recipe] = []
        problems: list[str] = []
        warnings: list[str] = []
        for number, data in enumerate(documents, 1):
            recipe, wrong, told = read(data, lenient=lenient)
            label = f"document {number}: " if len(documents) > 1 else ""
            problems += [label + line for line in wrong]
            warnings += [label + line for line in told]
            if recipe is not None:
                recipes.append(recipe)
        problems = problems or list(_wrong_names(recipes))
        if problems:
            raise unusable(problems, source)
        return cls(_ordered(recipes, source), tuple(warnings))


def _wrong_names(recipes: Iterable[Recipe]) -> Iterable[str]:
    seen: set[str | None] = set()
    for recipe in recipes:
        if recipe.name in seen:
            yield (
                f"two documents are named {recipe.name!r}"
                if recipe.name
                else "two documents have no name; at most one, the result, may be without"
            )
        seen.add(recipe.name)


def document_of(ref: str, names: Iterable[str | None]) -> str | None:
    """The document whose result a model is, or begins with: ``NAME`` or ``NAME+LORA``."""
    name = ref.partition("+")[0]
    return name if name in names else None


def _ordered(recipes: list[Recipe], source: str) -> tuple[Recipe, ...]:
    """Each after those it needs, in the order of the file otherwise; the result last."""
    by_name: Mapping[str | None, Recipe] = {recipe.name: recipe for recipe in recipes}
    needs = {
        recipe.name: [name for ref in recipe.refs if (name := document_of(ref, by_name)) is not None]
        for recipe in recipes
    }
    done: dict[str | None, Recipe] = {}

    def add(name: str | None, path: tuple[str | None, ...]) -> None:
        if name in path:
            circle = " -> ".join(str(one) for one in (*path[path.index(name) :], name))
            raise errors.RecipeError("documents need each other in a circle", file=source, got=circle)
        if name not in done:
            for other in needs[name]:
                add(other, (*path, name))
            done[name] = by_name[name]

    for recipe in recipes:
        add(recipe.name, ())
    result = None if None in by_name else _result(recipes, needs, source)
    last = done.pop(result)
    return (*done.values(), last)


def _result(recipes: list[Recipe], needs: Mapping[str | None, list[str]], source: str) -> str | None:
    """Where all are named: the one that no other takes."""
    taken = {name for names in needs.values() for name in names}
    free = [recipe.name for recipe in recipes if recipe.name not in taken]
    if len(free) != 1:
        raise errors.RecipeError(
            "which document is the result is not said", file=source, expected="one without a name",
            got=", ".join(map(str, free)),
        )  # fmt: skip
    return free[0]
