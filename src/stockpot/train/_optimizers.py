"""What becomes of the optimizers' states where replicas meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from stockpot.train._merging import combined

AfterMerge = Literal["keep", "reset", "average"]
State = dict[str, Any]


def after_merge(states: Sequence[State], how: AfterMerge) -> list[State]:
    """States of one optimizer in every replica, as they go on: each its own, none, or all their mean.

    Groups keep their rates: schedules run on. Of what is no floating tensor (step counters), the mean has the first's.
    """
    if how == "keep":
        return list(states)
    if how == "reset":
        return [{**state, "state": {}} for state in states]
    flat = [_moments(state) for state in states]
    names = set.intersection(*(set(one) for one in flat))
    means = (
        combined([{name: one[name] for name in sorted(names)} for one in flat], (1 / len(flat),) * len(flat))
        if names
        else {}
    )
    return [{**state, "state": _with(states[0]["state"], means)} for state in states]


def _moments(state: State) -> dict[str, Tensor]:
    return {
        f"{number}/{key}": value
        for number, own in state["state"].items()
        for key, value in own.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim()
    }


def _with(state: dict[Any, dict[str, Any]], means: dict[str, Tensor]) -> dict[Any, dict[str, Any]]:
    return {
        number: {key: means.get(f"{number}/{key}", value) for key, value in own.items()}
        for number, own in state.items()
    }
