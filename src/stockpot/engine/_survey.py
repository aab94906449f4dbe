"""The first look at all tensors that some methods take before they make any."""

from __future__ import annotations

import math

import numpy as np

from stockpot import errors
from stockpot.engine._beside import survey_rule
from stockpot.engine._execute import Run, execute
from stockpot.engine._plan import Plan
from stockpot.engine._records import Records
from stockpot.engine._schedule import Look
from stockpot.engine._sinks import Sink
from stockpot.measure import Array


def survey(plan: Plan, sink: Sink, *, whole: bool = False) -> Array | None:
    """What it comes to; None where nobody asks. ``whole``: also where the file beside the output alone needs it."""
    if plan.job.method.beside is None or not plan.groups:
        return None
    first = plan.slots[plan.groups[0].slots[0]]
    rule = survey_rule(plan.job, plan.values_of(first), first)
    if not (rule.awaits_survey or (whole and plan.beside is not None)):
        return None
    run = Run(plan, [Look(group.slots[0], place) for place, group in enumerate(plan.groups)], sink, Records())
    execute(run)
    found = [run.looks[place] for place in range(len(plan.groups))]
    if len({one.size for one in found}) > 1:
        raise errors.MethodError(f"{plan.job.method.name} needs every model in every tensor")
    total = np.array([math.fsum(column) for column in np.transpose(found)])
    if plan.beside is not None:
        for name, values in rule.concluded(total).items():
            sink.store_beside(name, 0, values.view(np.uint8).data)
    return total
