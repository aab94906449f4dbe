"""The first look at all tensors that some methods take before they make any."""

from __future__ import annotations

import math

import numpy as np

from stockpot import errors
from stockpot.engine._beside import survey_rule
from stockpot.engine._execute import Progress, Run, execute
from stockpot.engine._records import Records
from stockpot.engine._schedule import Look
from stockpot.engine._sinks import Sink


def survey(run: Run, sink: Sink, *, whole: bool = False, progress: Progress | None = None) -> None:
    """Tell a run what it comes to, where the method asks; ``whole``: also where the file beside the output alone does.

    What was read is counted as the run's.
    """
    plan = run.plan
    if plan.job.method.beside is None or not plan.groups:
        return
    first = plan.slots[plan.groups[0].slots[0]]
    rule = survey_rule(plan.job, plan.values_of(first), first)
    if not (rule.awaits_survey or (whole and plan.beside is not None)):
        return
    tasks = [Look(group.slots[0], place) for place, group in enumerate(plan.groups)]
    look, after = Run(plan, tasks, sink, Records()), run.total_bytes
    execute(look, None if progress is None else lambda done, total: progress(done, total + after))
    run.bytes_read += look.bytes_read
    run.bytes_done = run.bytes_before = look.total_bytes
    found = [look.looks[place] for place in range(len(plan.groups))]
    if len({one.size for one in found}) > 1:
        raise errors.MethodError(f"{plan.job.method.name} needs every model in every tensor")
    run.survey = total = np.array([math.fsum(column) for column in np.transpose(found)])
    if plan.beside is not None:
        for name, values in rule.concluded(total).items():
            sink.store_beside(name, 0, values.view(np.uint8).data)
