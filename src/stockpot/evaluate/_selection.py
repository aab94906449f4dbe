"""Which of the named numbers decides, and whether more of it is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from stockpot import errors

Direction = Literal["max", "min"]


@dataclass(frozen=True)
class Selection:
    """One name and its better direction; ``name`` None: the only one there is."""

    name: str | None = None
    direction: Direction = "max"

    @classmethod
    def parse(cls, text: str | None) -> Selection:
        """``NAME[:max|:min]``; nothing: the only name, more is better.

        >>> Selection.parse("loss:min"), Selection.parse("top:1")
        (Selection(name='loss', direction='min'), Selection(name='top:1', direction='max'))
        """
        if text is None:
            return cls()
        name, colon, last = text.rpartition(":")
        if colon and last == "min":
            return cls(name or None, "min")
        return cls((name if colon and last == "max" else text) or None)

    def among(self, names: Iterable[str]) -> Selection:
        """The same with a definite name; UsageError where it is not among the names, or has to be chosen."""
        known = list(names)
        if self.name is None:
            if len(known) > 1:
                raise errors.UsageError(
                    "the evaluator returns several numbers", expected="one of them to decide", got=", ".join(known),
                    remedy=f"give --select {known[0]}, with :min where less is better",
                )  # fmt: skip
            return Selection(known[0], self.direction)
        if self.name not in known:
            raise errors.unknown_name("metric", self.name, known)
        return self

    def of(self, values: Mapping[str, float]) -> float:
        """The deciding number."""
        return values[self.among(values).name or ""]

    def gain(self, values: Mapping[str, float]) -> float:
        """The deciding number with the sign that makes more better."""
        return self.of(values) if self.direction == "max" else -self.of(values)
