"""When replicas are merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stockpot import errors

Unit = Literal["step", "epoch"]


@dataclass(frozen=True)
class Schedule:
    """Merge after every ``every`` steps or epochs, not before ``warm_up`` of them, and at ``until``, the end.

    ``until``: steps or epochs in all, of one replica; None where the end is not known beforehand.

    >>> schedule = Schedule(every=2, unit="epoch", warm_up=3, until=7)
    >>> [count for count in range(1, 8) if schedule.is_due(count)]
    [4, 6, 7]
    """

    every: int
    unit: Unit = "epoch"
    warm_up: int = 0
    until: int | None = None

    def __post_init__(self) -> None:
        if self.unit not in ("step", "epoch"):
            raise errors.unknown_name("unit", self.unit, ("step", "epoch"))
        for name, least in (("every", 1), ("warm_up", 0), ("until", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise errors.ParameterError(
                    f"{name} of a schedule", expected=f"a whole number of {self.unit}s, at least {least}", got=value
                )

    def is_due(self, count: int) -> bool:
        """Whether replicas are merged after that many steps or epochs."""
        return count == self.until or (count % self.every == 0 and count >= max(self.warm_up, 1))

    def is_over(self, count: int) -> bool:
        """Whether training ends there."""
        return self.until is not None and count >= self.until
