"""What the repetitions of the demo found: means, standard errors, paired differences, and the words for them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stockpot.lab._reading import Reading

METRICS = ("accuracy", "loss", "shifted_accuracy", "shifted_loss", "held_accuracy", "held_loss")
BASE = "base, zero-shot"
SUBJECT = "Model Stock of 2"
PLACES = {"In distribution": "accuracy", "Under shift": "shifted_accuracy"}
AnyRate = float | None
"""None: what has no learning rate of its own, the base and soups over all rates."""


@dataclass(frozen=True)
class Difference:
    """How many points more one kind reads than another, with the standard error of that."""

    other: str
    points: float
    error: float

    @property
    def verdict(self) -> str:
        """In words; a difference within two standard errors counts as none."""
        if abs(self.points) <= 2 * self.error:
            return "neither beats nor trails"
        return "beats" if self.points > 0 else "trails"

    def __str__(self) -> str:
        return f"{self.other} ({self.points:+.1f} ± {2 * self.error:.1f})"


class Study:
    """Readings of every kind, at every learning rate, in every repetition."""

    def __init__(self, finetunes: int) -> None:
        self.finetunes = finetunes
        self.readings: dict[str, dict[AnyRate, list[Reading]]] = {}

    def add(self, rate: AnyRate, found: Mapping[str, Reading]) -> None:
        """Of the next repetition."""
        for kind, reading in found.items():
            self.readings.setdefault(kind, {}).setdefault(rate, []).append(reading)

    @property
    def repetitions(self) -> int:
        """How many there are."""
        return min(len(found) for rates in self.readings.values() for found in rates.values())

    def chosen_rates(self, kind: str) -> list[AnyRate]:
        """For each repetition the learning rate that is best on held-out digits; the test takes no part in it."""
        rates = self.readings[kind]
        return [max(rates, key=lambda rate: rates[rate][number].held_score) for number in range(self.repetitions)]

    def chosen(self, kind: str) -> list[Reading]:
        """The readings at those rates."""
        rates = self.chosen_rates(kind)
        return [self.readings[kind][rate][number] for number, rate in enumerate(rates)]

    def rows(self) -> list[dict[str, Any]]:
        """One for each kind, at the rate that held-out digits choose."""
        return [
            {
                "name": kind,
                "fine_tunes": cost_of(kind, self.finetunes)[0],
                "inference": cost_of(kind, self.finetunes)[1],
                "rates": [rate for rate in self.chosen_rates(kind) if rate is not None],
                "values": _values(self.chosen(kind)),
            }
            for kind in self.readings
        ]

    def by_rate(self) -> dict[str, dict[str, Any]]:
        """Every kind at every learning rate."""
        return {
            kind: {f"{rate:g}": _values(found) for rate, found in rates.items() if rate is not None}
            for kind, rates in self.readings.items()
            if None not in rates
        }

    def against(self, kind: str, other: str, metric: str, rate: AnyRate = None) -> Difference:
        """Paired: over repetitions where there are several, else over the digits that both have read.

        ``rate``: both at this one; None: each at its own choice.
        """
        ours = self.chosen(kind) if rate is None else self.readings[kind][rate]
        theirs = self.chosen(other) if rate is None else self.readings[other][rate]
        sets = slice(0, 1) if metric == "accuracy" else slice(1, None)
        apart = [a.right[sets].mean(dim=0) - b.right[sets].mean(dim=0) for a, b in zip(ours, theirs, strict=True)]
        sample = apart[0] if len(apart) == 1 else torch.stack([one.mean() for one in apart])
        error = float(sample.std()) / math.sqrt(len(sample))
        return Difference(other, 100 * float(sample.mean()), 100 * error)

    def findings(self) -> list[str]:
        """What reproduces here and what does not, as it came out."""
        count = self.finetunes
        rivals = [name for name in self.readings if name.startswith(("best", "average of", "WiSE", "ensemble of 2"))]
        said = [self._verdicts(place, SUBJECT, rivals) for place in PLACES]
        said += [self._by_rate(SUBJECT, "average of 2"), self._by_rate(SUBJECT, "one fine-tune")]
        if (many := f"average of {count}") in self.readings and count > 2:
            said.append(self._by_rate(SUBJECT, many))
        said.append(self._by_rate("Model Stock while training, of 2", SUBJECT))
        return said

    def _verdicts(self, place: str, kind: str, others: Sequence[str]) -> str:
        found = [self.against(kind, other, PLACES[place]) for other in others]
        words = [
            f"{verdict} {', '.join(str(one) for one in found if one.verdict == verdict)}"
            for verdict in dict.fromkeys(one.verdict for one in found)
        ]
        mean = _values(self.chosen(kind))[PLACES[place]]["mean"]
        chosen = "each at the rate that held-out digits choose"
        return f"{place}, {chosen}: {kind} reads {mean:.1f} %; it {'; it '.join(words)}."

    def _by_rate(self, kind: str, other: str) -> str:
        parts = []
        for rate in self.readings[kind]:
            one, two = (self.against(kind, other, metric, rate) for metric in PLACES.values())
            parts.append(f"{rate:g}: {one.points:+.1f} ± {2 * one.error:.1f}, {two.points:+.1f} ± {2 * two.error:.1f}")
        return f"{kind} less {other}, by learning rate, in distribution and under shift: {'; '.join(parts)}."


def cost_of(kind: str, finetunes: int) -> tuple[int, int]:
    """(fine-tunes that must be trained, forward passes for one answer)."""
    if kind == BASE:
        return 0, 1
    if kind.startswith("best"):
        return finetunes, 1
    found = re.search(r"of (\d+)", kind)
    members = int(found.group(1)) if found else 1
    return members, members if kind.startswith("ensemble") else 1


def _values(readings: Sequence[Reading]) -> dict[str, dict[str, float | None]]:
    found = {}
    for metric in METRICS:
        own = torch.tensor([one.values[metric] for one in readings], dtype=torch.float64)
        error = float(own.std()) / math.sqrt(len(own)) if len(own) > 1 else None
        found[metric] = {"mean": round(float(own.mean()), 4), "error": None if error is None else round(error, 4)}
    return found
