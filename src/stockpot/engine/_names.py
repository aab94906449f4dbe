"""Names that do not match: what to tell the user, and which head belongs to which embedding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from stockpot import errors
from stockpot.checkpoint import EMBEDDINGS, HEADS, Source, TensorInfo

ALIGNED_SHARE = 0.9


def tied_head(view: Mapping[str, TensorInfo], known: set[str], prefix: str) -> tuple[str, str] | None:
    """(head, embedding) where this model lacks a head that others have and its embedding has that role by name."""
    heads = [name for name in known if name.startswith(prefix) and name.endswith(HEADS) and name not in view]
    embeddings = [name for name in view if name.startswith(prefix) and name.endswith(EMBEDDINGS)]
    return (heads[0], embeddings[0]) if len(heads) == 1 and len(embeddings) == 1 else None


def rename_hints(views: Sequence[Mapping[str, TensorInfo]], has_base: bool) -> list[str]:
    """The exact ``--rename`` for each input whose names differ from most inputs' by one prefix; none if that is not it.

    The names to keep are those that most inputs agree on (of equals, the later: fine-tunes rather than the base).
    """
    sets = [set(view) for view in views]
    kept = max(reversed(range(len(sets))), key=lambda i: sum(_overlap(sets[i], other) for other in sets))
    hints = []
    for number, own in enumerate(sets):
        if _overlap(own, sets[kept]):
            continue
        rule = _rule(own, sets[kept])
        if rule is None:
            return []
        who = "base" if has_base and number == 0 else str(number + (not has_base))
        hints.append(f"--rename '{who}:{rule}'")
    return hints


def _overlap(left: set[str], right: set[str]) -> bool:
    return len(left & right) >= ALIGNED_SHARE * min(len(left), len(right))


def _rule(own: set[str], kept: set[str]) -> str | None:
    """``REGEX=REPL`` that adds or takes away the one prefix under which these names align."""
    enough = ALIGNED_SHARE * min(len(own), len(kept))
    for prefix in _prefixes(kept):
        if sum(prefix + name in kept for name in own) >= enough:
            return f"^={prefix}"
    for prefix in _prefixes(own):
        if sum(prefix + name in own for name in kept) >= enough:
            return f"^{prefix.replace('.', '[.]')}="
    return None


def _prefixes(names: set[str]) -> Iterator[str]:
    """Leading components that at least half of the names carry, shortest first."""
    depth = 1
    while depth < 6:
        found: dict[str, int] = {}
        for name in names:
            parts = name.split(".")
            if len(parts) > depth:
                prefix = ".".join(parts[:depth]) + "."
                found[prefix] = found.get(prefix, 0) + 1
        common = [prefix for prefix, count in found.items() if count >= len(names) / 2]
        if not common:
            return
        yield from sorted(common)
        depth += 1


def missing_error(
    missing: Mapping[str, Sequence[int]],
    checkpoints: Sequence[Source],
    views: Sequence[Mapping[str, TensorInfo]],
    has_base: bool,
    hints: Sequence[str],
) -> errors.MissingTensorError:
    """One error for all missing tensors: counts by input, the first name, every name as a problem line."""

    def label(number: int) -> str:
        return f"the base {checkpoints[number].ref}" if has_base and number == 0 else checkpoints[number].ref

    by_input: dict[int, int] = {}
    for numbers in missing.values():
        for number in numbers:
            by_input[number] = by_input.get(number, 0) + 1
    first = next(iter(missing))
    counts = ", ".join(f"{count} of {len(missing)} from {label(number)}" for number, count in by_input.items())
    remedy = "--missing average|first|base accepts it, --exclude leaves it as the template has it"
    if hints:
        remedy = f"the names differ by a prefix: add {' '.join(hints)}"
    return errors.MissingTensorError(
        "a tensor is missing" if len(missing) == 1 else f"{len(missing)} tensors are missing",
        tensor=first,
        expected="each tensor in every input",
        got=f"missing {counts}",
        remedy=remedy,
        problems=[f"{name}: not in {', '.join(label(n) for n in numbers)}" for name, numbers in missing.items()]
        if len(missing) > 1
        else (),
    )
