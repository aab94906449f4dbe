"""What ``stockpot bench clip`` has found, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stockpot.lab._published import Published


@dataclass(frozen=True)
class ClipRow:
    """One model: accuracy in per cent by set and, where all five shifts are there, their mean."""

    label: str
    kind: str
    scores: Mapping[str, float]
    published: Published | None = None
    held_out: float | None = None
    members: tuple[str, ...] = ()

    @property
    def differences(self) -> dict[str, float]:
        """Ours less theirs, in points, where both have a number."""
        theirs = {} if self.published is None else self.published.values
        return {name: self.scores[name] - value for name, value in theirs.items() if name in self.scores}

    def data(self) -> dict[str, object]:
        """Plain values."""
        own = self.published
        shown = (
            None
            if own is None
            else {"key": own.key, "source": own.source, "what": own.what, "values": dict(own.values)}
        )
        return {
            "label": self.label, "kind": self.kind, "members": list(self.members), "scores": dict(self.scores),
            "held_out": self.held_out, "published": shown, "differences": self.differences,
        }  # fmt: skip


@dataclass(frozen=True)
class ClipTable:
    """A finished run; ``notes``: what differs from the papers' protocol, and where data are not as published."""

    architecture: str | None
    sets: tuple[str, ...]
    images: Mapping[str, int]
    rows: tuple[ClipRow, ...]
    notes: tuple[str, ...]
    evaluated: int
    known: int

    def data(self) -> dict[str, object]:
        """Plain values."""
        return {
            "architecture": self.architecture, "sets": list(self.sets), "images": dict(self.images),
            "rows": [row.data() for row in self.rows], "notes": list(self.notes), "evaluated": self.evaluated,
            "known": self.known,
        }  # fmt: skip
