"""Names of models for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def short_names(refs: Sequence[str]) -> dict[str, str]:
    """The shortest tails of the paths that tell them apart; of ``BASE+ADAPTER`` the last names of both.

    >>> short_names(["runs/a/last", "runs/b/last", "runs/base"])
    {'runs/a/last': 'a/last', 'runs/b/last': 'b/last', 'runs/base': 'base'}
    """
    if any("+" in ref for ref in refs):  # a base and adapters: all of it tells them apart
        return {ref: "+".join(Path(part).name or part for part in ref.split("+")) for ref in refs} | _alike(refs)
    parts = {ref: [part for part in ref.split("/") if part] or [ref] for ref in refs}
    found = {}
    for ref in parts:
        for length in range(1, len(parts[ref]) + 1):
            tail = parts[ref][-length:]
            if sum(other[-length:] == tail for other in parts.values()) == 1:
                break
        found[ref] = "/".join(tail) if length < len(parts[ref]) else ref
    return found


def _alike(refs: Sequence[str]) -> dict[str, str]:
    """Whole references where last names are the same."""
    names = ["+".join(Path(part).name or part for part in ref.split("+")) for ref in refs]
    return {ref: ref for ref, name in zip(refs, names, strict=True) if names.count(name) > 1}


def brief(name: str, most: int = 28) -> str:
    """What fits a figure: the middle of a long name is left out.

    >>> brief("a-very-long-name-of-a-run-with-seed-1", 16)
    'a-very-…h-seed-1'
    """
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[head + 1 - most :]}"


def more_is_better(direction: str) -> str:
    """Words for a direction."""
    return "more is better" if direction == "max" else "less is better"
