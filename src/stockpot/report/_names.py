"""Names of models for people."""

from __future__ import annotations

from collections.abc import Sequence


def short_names(refs: Sequence[str]) -> dict[str, str]:
    """The shortest tails of the paths that tell them apart; of ``BASE+ADAPTER`` those of both.

    >>> short_names(["runs/a/last", "runs/b/last", "runs/base"])
    {'runs/a/last': 'a/last', 'runs/b/last': 'b/last', 'runs/base': 'base'}
    >>> short_names(["runs/base+a/last", "runs/base+b/last"])
    {'runs/base+a/last': 'base+a/last', 'runs/base+b/last': 'base+b/last'}
    """
    tails = _tails([part for ref in refs for part in ref.split("+")])
    return {ref: "+".join(tails[part] for part in ref.split("+")) for ref in refs}


def _tails(refs: Sequence[str]) -> dict[str, str]:
    parts = {ref: [part for part in ref.split("/") if part] or [ref] for ref in refs}
    found = {}
    for ref in parts:
        for length in range(1, len(parts[ref]) + 1):
            tail = parts[ref][-length:]
            if sum(other[-length:] == tail for other in parts.values()) == 1:
                break
        found[ref] = "/".join(tail) if length < len(parts[ref]) else ref
    return found


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
