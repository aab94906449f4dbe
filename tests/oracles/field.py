"""Inputs and cases on which another tool's numbers were taken, and what the oracles say of them."""

import numpy as np
from tests.oracles import elementwise

SHAPES = {"matrix": (4, 5), "vector": (10,), "stack": (2, 2, 5), "sparse": (5, 4)}
"""Sizes of 10 and 20: densities in tenths then keep whole numbers, about which nobody can differ."""

THREE = {"weight": [0.5, 0.3, 0.9]}
SIGNED = {"weight": [1.0, -0.5, 0.75]}
HALVES = {"density": [0.5, 0.3, 0.8]}
CASES = {
    "task_arithmetic": [THREE, {**SIGNED, "normalize": True, "lambda": 0.7}],
    "ties": [
        {**THREE, **HALVES},
        {**THREE, **HALVES, "normalize": False},
        {**THREE, **HALVES, "lambda": 0.4},
        {**SIGNED, **HALVES},
        {**SIGNED, **HALVES, "normalize": False},
        {**THREE, **HALVES, "rescale": True},
        THREE,
    ],
    "breadcrumbs": [
        {**THREE, **HALVES, "gamma": [0.1, 0.2, 0.1]},
        {**THREE, **HALVES, "gamma": [0.1, 0.2, 0.9], "normalize": True, "lambda": 0.4},
        {**SIGNED, **HALVES, "gamma": [0.1, 0.1, 0.1], "rescale": True},
        {**THREE, "density": [0.9, 0.9, 0.9]},
    ],
    "breadcrumbs_ties": [
        {**THREE, **HALVES, "gamma": [0.1, 0.2, 0.1]},
        {**SIGNED, **HALVES, "gamma": [0.1, 0.2, 0.1], "normalize": True, "lambda": 0.4},
        {**THREE, **HALVES, "gamma": [0.1, 0.2, 0.1], "rescale": True},
    ],
    "dare_linear": [{**THREE, "density": [1.0, 1.0, 1.0]}, {**THREE, "normalize": True, "lambda": 0.4}],
    "dare_ties": [{**THREE, "density": [1.0, 1.0, 1.0]}, {**SIGNED, "normalize": True, "lambda": 0.4}],
    "della": [THREE, {**SIGNED, "normalize": False, "lambda": 0.4}],
    "della_linear": [THREE, {**SIGNED, "normalize": True, "lambda": 0.4}],
    "sce": [{}, {"select_topk": 0.5}, {"select_topk": 0.3}, {"select_topk": 0.0}],
    "nearswap": [{"t": 0.1}, {"t": 1.0}, {"t": 0.0}],
    "arcee_fusion": [{}],
    "ram": [{}, {"epsilon": 0.5}],
    "ramplus_tl": [{}, {"r": 0.5, "alpha": 3.0, "epsilon": 0.5}, {"r": 0.3, "alpha": 0.7}],
}
"""By method: parameters by name, a list being one value for each model. Of the random methods what is not random."""


def model_count(method):
    """How many models beside the base a method takes here."""
    return 1 if method in ("nearswap", "arcee_fusion") else 3


def inputs(count, seed=20):
    """(base, models): maps of float64 arrays, without equal magnitudes; in ``sparse`` many are as in the base."""
    generator = np.random.default_rng(seed)
    base = {name: generator.normal(size=shape) for name, shape in SHAPES.items()}
    models = []
    for number in range(count):
        model = {name: base[name] + generator.normal(size=shape) for name, shape in SHAPES.items()}
        places = np.arange(base["sparse"].size).reshape(SHAPES["sparse"])
        changed = (places % 3 == number) | (places % 7 == 0) | (count == 1)
        model["sparse"] = np.where(changed, model["sparse"], base["sparse"])
        models.append(model)
    return base, models


def expected(method, parameters, base, models):
    """What the oracle makes of one tensor."""
    given = {"scale" if name == "lambda" else name: value for name, value in parameters.items()}
    ones = [1.0] * len(models)
    everything = [np.ones(base.shape, dtype=bool) for _ in models]
    if method == "task_arithmetic":
        return elementwise.added(base, [model - base for model in models], **given)
    if method in ("nearswap", "arcee_fusion"):
        return getattr(elementwise, method)(base, models[0], **given)
    if method in ("sce", "ram"):
        return getattr(elementwise, method)(base, models, **given)
    if method == "ramplus_tl":
        return elementwise.ram(base, models, **{"r": 0.1, "alpha": 0.2, **given})
    given = {"density": ones, **given}
    if method == "ties":
        return elementwise.ties(base, models, **given)
    if method.startswith("breadcrumbs"):
        given = {"gamma": [0.01] * len(models), **given}
        return elementwise.breadcrumbs(base, models, elect=method.endswith("ties"), **given)
    if method.startswith("dare"):
        return elementwise.dare(base, models, masks=everything, elect=method.endswith("ties"), **given)
    elected = method == "della"
    given = {"epsilon": [0.15] * len(models), "normalize": elected, **given}
    return elementwise.della(base, models, uniforms=[np.zeros(base.shape)] * len(models), elect=elected, **given)
