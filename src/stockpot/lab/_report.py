"""What a run of the demo found: rows, differences with their uncertainty, and what they say in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

_NEITHER = "neither beats nor trails"


@dataclass(frozen=True)
class Scores:
    """Read rightly (1) or not (0): each test digit, by one or more checkpoints of a kind."""

    plain: Tensor  # float64 [checkpoint, digit]
    shifted: Tensor  # float64 [checkpoint, shift, digit]


@dataclass(frozen=True)
class Spread:
    """Accuracies of the checkpoints of a kind, in percent."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One line of the table: the checkpoints of a kind, on the test digits and on the shifted ones."""

    name: str
    checkpoints: int
    in_distribution: Spread
    out_of_distribution: Spread  # of each checkpoint, the mean over the shifts
    by_shift: Mapping[str, float]  # percent, the mean over the checkpoints


@dataclass(frozen=True)
class Difference:
    """How much more of the same digits one kind reads than another, in points, with its standard error."""

    other: str
    points: float
    error: float

    @property
    def verdict(self) -> str:
        """In words; a difference within two standard errors counts as none."""
        if abs(self.points) <= 2 * self.error:
            return _NEITHER
        return "beats" if self.points > 0 else "trails"

    def __str__(self) -> str:
        return f"{self.other} ({self.points:+.1f} ± {2 * self.error:.1f})"


@dataclass(frozen=True)
class DemoReport:
    """A finished run: the numbers, the words, and where the checkpoints are."""

    out: Path
    seed: int
    rows: tuple[Row, ...]
    findings: tuple[str, ...]
    ratios: Mapping[str, Mapping[str, float | int]]  # of each Model Stock merge, by its folder
    command: str  # repeats one of the merges by hand

    def record(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {
            "out": str(self.out),
            "seed": self.seed,
            "rows": [asdict(row) for row in self.rows],
            "findings": list(self.findings),
            "ratios": {name: dict(ratio) for name, ratio in self.ratios.items()},
            "merge_command": self.command,
        }


def make_row(name: str, scores: Scores, shifts: Sequence[str]) -> Row:
    """Accuracies of one kind."""
    return Row(
        name=name,
        checkpoints=len(scores.plain),
        in_distribution=_spread(scores.plain.mean(1)),
        out_of_distribution=_spread(scores.shifted.mean((1, 2))),
        by_shift={shift: _percent(scores.shifted[:, place].mean()) for place, shift in enumerate(shifts)},
    )


def difference(ours: Tensor, theirs: Tensor, other: str) -> Difference:
    """Between two kinds, over the digits (the last axis) that both have read.

    Other axes are averaged first, so the standard error is that of a paired difference over digits: it answers for the
    choice of test digits, not for another training seed.
    """
    per_digit = ours.flatten(0, -2).mean(0) - theirs.flatten(0, -2).mean(0)
    error = float(per_digit.std()) / math.sqrt(len(per_digit))
    return Difference(other, 100 * float(per_digit.mean()), 100 * error)


def findings(kind: str, scores: Mapping[str, Scores], others: Mapping[str, str]) -> tuple[str, ...]:
    """One sentence in distribution and one under shift: how a kind does against others, whatever comes out.

    ``others`` gives each kind to compare with and how a sentence calls it.
    """
    sentences = []
    for place, tensors in (
        ("In distribution", {name: found.plain for name, found in scores.items()}),
        ("Under shift", {name: found.shifted for name, found in scores.items()}),
    ):
        found = [difference(tensors[kind], tensors[other], called) for other, called in others.items()]
        said = [f"{verdict} {_listed(found, verdict)}" for verdict in dict.fromkeys(one.verdict for one in found)]
        words = ", ".join(said[:-1]) + (", and " if len(said) > 1 else "") + said[-1]
        sentences.append(f"{place}, {kind} reads {100 * float(tensors[kind].mean()):.1f} %: it {words}.")
    return tuple(sentences)


def _listed(differences: Sequence[Difference], verdict: str) -> str:
    names = [str(one) for one in differences if one.verdict == verdict]
    last = " or " if verdict == _NEITHER else " and "
    return ", ".join(names[:-1]) + (last if len(names) > 1 else "") + names[-1]


def _spread(accuracies: Tensor) -> Spread:
    return Spread(_percent(accuracies.mean()), _percent(accuracies.min()), _percent(accuracies.max()))


def _percent(share: Tensor) -> float:
    return round(100 * float(share), 4)
