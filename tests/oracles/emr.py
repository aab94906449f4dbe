"""EMR-Merging in float64, element by element, from its paper's three steps; no line of stockpot is used."""

import math

import numpy as np
from tests.oracles.exact import numbers


def elect(steps):
    """The unified task vector: the sign of the sum, the largest magnitude of those that have it; flat."""
    found = []
    for own in np.stack(steps, axis=1):
        sign = np.sign(math.fsum(own))
        found.append(sign * max((abs(x) for x in own if np.sign(x) == sign), default=0.0))
    return np.array(found)


def emr(base, models):
    """(unified models by tensor, masks by task and tensor, scales by task, task models by task and tensor)."""
    steps = [{name: numbers(model[name]) - numbers(base[name]) for name in base} for model in models]
    unified = {name: elect([own[name] for own in steps]) for name in base}
    masks = [{name: own[name] * unified[name] > 0 for name in base} for own in steps]
    scales = []
    for own, mask in zip(steps, masks, strict=True):
        whole = math.fsum(abs(x) for name in base for x in own[name])
        kept = math.fsum(abs(x) for name in base for x in unified[name][mask[name]])
        scales.append(whole / kept if kept else float(not whole))
    tasks = [
        {name: numbers(base[name]) + scale * np.where(mask[name], unified[name], 0.0) for name in base}
        for scale, mask in zip(scales, masks, strict=True)
    ]
    return {name: numbers(base[name]) + unified[name] for name in base}, masks, scales, tasks
