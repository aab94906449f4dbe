"""What a merge did, as data: coefficients of each group, digest of each tensor."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stockpot.engine._plan import Group
from stockpot.measure import Array
from stockpot.methods import Mixture, repeated

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class GroupRecord:
    """Coefficients of one group; of a row group, quantiles over its rows stand for them."""

    weights: tuple[float, ...] | None
    ratio: float | None
    clamped: int
    fallback: int
    rows: int
    ratio_quantiles: tuple[float, ...] | None
    facts: Mapping[str, object] = field(default_factory=dict)
    """What an element-wise method tells of the tensor."""

    def data(self) -> dict[str, object]:
        """Plain values, without what does not apply."""
        found: dict[str, object] = dict(self.facts)
        if self.weights is not None:
            found["weights"] = list(self.weights)
        if self.ratio is not None:
            found["ratio"] = self.ratio
        if self.rows:
            found["rows"] = self.rows
        if self.ratio_quantiles is not None:
            found["ratio_quantiles"] = list(self.ratio_quantiles)
        if self.clamped:
            found["clamped"] = self.clamped
        if self.fallback:
            found["fallback"] = self.fallback
        return found


@dataclass
class Records:
    """Filled by the workers; read when all is done."""

    groups: dict[str, GroupRecord] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    _rows: dict[str, list[tuple[int, Mixture]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, group: Group, mixture: Mixture) -> None:
        """The coefficients of a whole group."""
        self.add_many([group], repeated(mixture, 1))

    def add_many(self, groups: Sequence[Group], mixture: Mixture) -> None:
        """The coefficients of groups, one row of the mixture for each."""
        nothing = [None] * len(groups)
        columns = (mixture.weights, mixture.ratio, mixture.clamped, mixture.fallback)
        lists = [nothing if column is None else column.tolist() for column in columns]
        found = {
            group.name: GroupRecord(
                tuple(weights),
                None if ratio is None or math.isnan(ratio) else ratio,
                int(clamped or 0),
                int(fallback or 0),
                0,
                None,
            )
            for group, weights, ratio, clamped, fallback in zip(groups, *lists, strict=True)
        }
        with self._lock:
            self.groups.update(found)

    def add_facts(self, group: Group, facts: Mapping[str, object]) -> None:
        """What is told of a tensor that a rule has made."""
        with self._lock:
            self.groups[group.name] = GroupRecord(None, None, 0, 0, 0, None, facts)

    def add_rows(self, group: Group, first_row: int, mixture: Mixture) -> None:
        """The coefficients of some rows of a group."""
        with self._lock:
            self._rows.setdefault(group.name, []).append((first_row, mixture))

    def finish_rows(self, group: Group) -> None:
        """All rows of a group are in."""
        with self._lock:
            parts = sorted(self._rows.pop(group.name), key=lambda part: part[0])
        clamped = sum(_hits(part.clamped) for _, part in parts)
        fallback = sum(_hits(part.fallback) for _, part in parts)
        quantiles = None
        if all(part.ratio is not None for _, part in parts):
            ratios = np.concatenate([np.atleast_1d(part.ratio) for _, part in parts if part.ratio is not None])
            quantiles = _quantiles(ratios)
        with self._lock:
            self.groups[group.name] = GroupRecord(None, None, clamped, fallback, group.rows, quantiles)

    def add_digest(self, tensor: str, digest: str) -> None:
        """The digest of a finished tensor."""
        with self._lock:
            self.digests[tensor] = digest


@dataclass(frozen=True)
class RatioSummary:
    """How far from the base the groups went; frozen groups are not counted."""

    min: float
    median: float
    max: float
    clamped: int
    count: int

    def data(self) -> dict[str, float | int]:
        """Plain values."""
        return {"min": self.min, "median": self.median, "max": self.max, "clamped": self.clamped, "count": self.count}


def summarize(groups: Mapping[str, GroupRecord]) -> RatioSummary | None:
    """Over all groups (of row groups: their quantiles); None where no group has a ratio."""
    ratios: list[float] = []
    for record in groups.values():
        if record.ratio is not None:
            ratios.append(record.ratio)
        elif record.ratio_quantiles is not None:
            ratios.extend(record.ratio_quantiles)
    if not ratios:
        return None
    clamped = sum(record.clamped for record in groups.values())
    counted = sum(record.rows or 1 for record in groups.values() if record.ratio is not None or record.ratio_quantiles)
    return RatioSummary(min(ratios), float(np.median(ratios)), max(ratios), clamped, counted)


def _quantiles(ratios: Array) -> tuple[float, ...] | None:
    moved = ratios[~np.isnan(ratios)]
    return tuple(float(q) for q in np.quantile(moved, QUANTILES)) if len(moved) else None


def _hits(flags: object) -> int:
    return 0 if flags is None else int(np.sum(np.asarray(flags)))
