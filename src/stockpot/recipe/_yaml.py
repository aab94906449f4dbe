"""YAML into plain values: safe, one meaning for each key, bounded whatever the text expands to."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import yaml

from stockpot import errors

YAML_ERRORS = (*(yaml.YAMLError, RecursionError, ValueError, TypeError, ArithmeticError, AttributeError, LookupError),)
"""What the safe loader raises: its own errors, and whatever comes of a value that is not what its tag says."""
SIZE_CAP = 4 << 20
NODES_CAP = 200_000
MERGED_CAP = 10_000


class _Loader(yaml.SafeLoader):
    """The safe loader, refusing a key that stands twice (the last would win in silence)."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MERGED_CAP:
            raise yaml.constructor.ConstructorError(None, None, "merge keys expand to absurdly much", node.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(text: str, source: str) -> list[object]:
    """The documents of a text, as plain values; RecipeError says in which line it is not plain YAML."""
    try:
        documents = list(yaml.load_all(text, Loader=_Loader))
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "it"
        problem = getattr(error, "problem", None) or type(error).__name__
        raise errors.RecipeError(f"the recipe is not plain YAML: {where}: {problem}", file=source) from None
    if _count(documents) > NODES_CAP:
        raise errors.RecipeError("the recipe expands to absurdly many values", file=source, expected=NODES_CAP)
    return documents


def _count(value: object) -> int:
    """Values reached by walking, aliases counted as often as they are met, up to just over the cap."""
    total, stack = 0, [value]
    while stack and total <= NODES_CAP:
        top = stack.pop()
        total += 1
        if isinstance(top, Mapping):
            stack.extend(top.values())
        elif isinstance(top, list | tuple):
            stack.extend(top)
    return total
