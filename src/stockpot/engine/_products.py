"""Inner products of two inputs, tensor by tensor, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stockpot.checkpoint import Source
from stockpot.engine._execute import Run, execute
from stockpot.engine._job import resolve
from stockpot.engine._plan import Plan, make_plan, open_inputs
from stockpot.engine._records import Records
from stockpot.engine._schedule import measuring_tasks
from stockpot.engine._sinks import CollectingSink
from stockpot.measure import Array
from stockpot.methods import Mixture, coefficients
from stockpot.recipe import Recipe


@coefficients(base="unused", models=(2, 2), reference="")
def pair(raw_gram: Array) -> Mixture:
    """Nothing is mixed."""
    return Mixture(np.zeros(raw_gram.shape[:-1]))


def plan_products(
    recipe: Recipe, opened: Mapping[str, Source], *, memory: int, workers: int | None, device: str
) -> Plan:
    """How the recipe's two models are to be multiplied; the plan serves as often as they change."""
    job = resolve(recipe, method=pair)
    inputs = open_inputs(job, opened)
    return make_plan(job, inputs, Path("products"), memory=memory, workers=workers, device=device)


def products(plan: Plan) -> dict[str, float]:
    """<w_0, w_1> of every tensor that both have, in float64 sums. Cost: each is read once."""
    sink = CollectingSink()
    execute(Run(plan, measuring_tasks(plan), sink, Records(), only_measure=True))
    return {group.name: float(sink.found[group.name][0, 1]) for group in plan.groups}
