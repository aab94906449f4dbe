"""What the report draws of one repetition at one learning rate: distances, the control, the line to the base."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stockpot.lab._network import Weights
from stockpot.lab._reading import Reading
from stockpot.lab._trial import ALPHAS, Trial


def gallery(trial: Trial, rate: float) -> dict[str, Any]:
    """Plain numbers: errors in per cent, distances as plain norms over all weights."""
    tuned = trial.tuned(rate)
    centre = trial.merged("linear", tuned)
    count = len(tuned)
    radius = math.sqrt(sum(_distance(one, centre) ** 2 for one in tuned) / count)
    means = []
    for members in range(1, count):
        own = trial.merged("linear", tuned[:members])
        # Of N independent seeds, the mean of n lies sqrt((N - n) / (n (N - 1))) times as far from the mean of all.
        theory = radius * math.sqrt((count - members) / (members * (count - 1)))
        means.append({"members": members, "theory": theory, **_place(trial, own, centre)})
    pairs = list(zip(tuned[::2], tuned[1::2], strict=False))
    return {
        "rate": rate,
        "radius": radius,
        "base_distance": _distance(trial.base, centre),
        "means": means,
        "model_stock": [_place(trial, trial.merged("model_stock", pair), centre) for pair in pairs],
        "centre": _place(trial, centre, centre),
        "finetunes": [_place(trial, one, centre) for one in tuned],
        "random": [_place(trial, one, centre) for one in trial.random_ones(tuned)],
        "wise_ft": [
            {
                "alpha": alpha,
                **_errors(trial.reader.read(trial.merged("wise_ft", tuned[:1], parameters={"alpha": alpha}))),
            }
            for alpha in ALPHAS
        ],
    }


def control_sentence(found: Mapping[str, Any]) -> str:
    """Random weights as far from the centre as the fine-tunes, against them."""
    tuned, drawn = ([_mean(found[kind], key) for key in ("error", "shifted_error")] for kind in ("finetunes", "random"))
    return (
        f"Random weights as far from the mean of all as the fine-tunes at {found['rate']:g}: {drawn[0]:.1f} % wrong in "
        f"distribution and {drawn[1]:.1f} % under shift; the fine-tunes {tuned[0]:.1f} and {tuned[1]:.1f}."
    )


def distance_sentence(found: Mapping[str, Any]) -> str:
    """The means' distances against R / sqrt(N), and the errors along them."""
    worst = max(abs(one["distance"] / one["theory"] - 1) for one in found["means"])
    first, last = found["means"][0], found["means"][-1]
    return (
        f"Means of more fine-tunes at {found['rate']:g} come nearer to the mean of all as independent draws would, "
        f"within {100 * worst:.0f} %; from 1 to {last['members']} of them the error goes from {first['error']:.1f} to "
        f"{last['error']:.1f} % in distribution, from {first['shifted_error']:.1f} to {last['shifted_error']:.1f} "
        "under shift."
    )


def _mean(places: Sequence[Mapping[str, float]], key: str) -> float:
    return sum(one[key] for one in places) / len(places)


def _place(trial: Trial, weights: Weights, centre: Weights) -> dict[str, float]:
    return {"distance": _distance(weights, centre), **_errors(trial.reader.read(weights))}


def _errors(found: Reading) -> dict[str, float]:
    values = found.values
    return {"error": 100 - values["accuracy"], "shifted_error": 100 - values["shifted_accuracy"]}


def _distance(one: Weights, other: Weights) -> float:
    return math.sqrt(sum(float((one[name].double() - other[name].double()).square().sum()) for name in one))
