"""The file that some methods write beside the output: laid out from the plan, filled as they look at all tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from stockpot.checkpoint import OutFile, pack_file
from stockpot.engine._align import Slot
from stockpot.engine._budget import rule_of
from stockpot.engine._job import Job
from stockpot.methods import SurveyRule

SCALES = "scales"
MASK = "mask."
"""What names of tensors begin with in it."""


def survey_rule(job: Job, values: Mapping[str, object], slot: Slot) -> SurveyRule:
    """The rule of a tensor, of a method that looks at all of them first."""
    rule = rule_of(job, values, slot)
    assert isinstance(rule, SurveyRule)
    return rule


def beside(job: Job, settings: Sequence[Mapping[str, object]], slots: Sequence[Slot]) -> OutFile | None:
    """Its header, and the place of each tensor's bytes in it, of the tensors that are merged; None for no file."""
    if job.method.beside is None:
        return None
    shapes = {slot.name: survey_rule(job, settings[slot.setting], slot).beside for slot in slots}
    specs = [(MASK + name, "U8", shape) for name, shape in shapes.items() if shape]
    if not specs:
        return None
    metadata = {"format": f"stockpot {job.method.name}", "tasks": json.dumps(job.models)}
    return pack_file(job.method.beside, [(SCALES, "F64", (len(job.models),)), *specs], metadata)
