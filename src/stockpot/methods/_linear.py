"""Combinations whose coefficients are given, not measured: linear, wise_ft, task_arithmetic, passthrough."""

from __future__ import annotations

import math

import numpy as np

from stockpot.methods._base import Mixture, PerModel, coefficients, each, normalized


@coefficients(
    base="unused",
    models=(1, None),
    reference="Wortsman et al., Model soups, arXiv 2203.05482",
    recipe_required=("weight",),
)
def linear(count: int, *, weight: PerModel = (1.0,), normalize: bool = True) -> Mixture:
    """Weighted average of the models; with equal weights the uniform soup.

    w = sum_i weight_i w_i, with the weights divided by their sum under ``normalize``.

    Arguments: ``count``, number of models; ``weight``, one for each model (any sign, default 1: the plain mean);
    ``normalize``, divide by the sum (default, so that the result has the models' scale).
    Returns weights of shape ``(count,)``. Raises ParameterError where the weights sum to zero under ``normalize``.
    Cost: one pass, reading each input once. Reference: arXiv 2203.05482, uniform soup.

    >>> from stockpot.methods import get_method
    >>> get_method("linear")(2, {"weight": (3.0, 1.0)}).weights
    array([0.75, 0.25])
    """
    weights = each(weight, count)
    return Mixture(normalized("linear", weights) if normalize else weights)


@coefficients(base="required", models=(1, 1), reference="Wortsman et al., WiSE-FT, arXiv 2109.01903")
def wise_ft(count: int, *, alpha: float = 0.5) -> Mixture:
    """Interpolation between the base (zero-shot) and one fine-tune.

    w = (1 - alpha) w0 + alpha w1, over every tensor, head included.

    Arguments: ``alpha``, 0 (the base's bytes) to 1 (the fine-tune's), default .5 as the paper recommends where nothing
    can be measured; values outside extrapolate. Returns weights ``(2,)``. Cost: one pass. Reference: arXiv 2109.01903,
    equation 1.

    >>> from stockpot.methods import get_method
    >>> get_method("wise_ft")(2, {"alpha": 0.25}).weights
    array([0.75, 0.25])
    """
    return Mixture(np.array([1.0 - alpha, alpha]))


@coefficients(
    base="required",
    models=(1, None),
    reference="Ilharco et al., Editing models with task arithmetic, arXiv 2212.04089",
    recipe_required=("weight",),
)
def task_arithmetic(count: int, *, weight: PerModel = (1.0,), normalize: bool = False, lambda_: float = 1.0) -> Mixture:
    """The base plus a weighted sum of task vectors.

    w = w0 + lambda sum_i weight_i (w_i - w0).

    Arguments: ``weight``, one for each model (negative: forget that task); ``normalize``, divide the weights by their
    sum; ``lambda``, scale of the whole step. Returns weights ``(N+1,)``, the base's first. Raises ParameterError where
    the weights sum to zero under ``normalize``. Cost: one pass. Reference: arXiv 2212.04089, section 2.

    >>> from stockpot.methods import get_method
    >>> get_method("task_arithmetic")(3, {"weight": (0.5, 0.25)}).weights
    array([0.25, 0.5 , 0.25])
    """
    weights = each(weight, count - 1)
    steps = lambda_ * (normalized("task_arithmetic", weights) if normalize else weights)
    return Mixture(np.array([1.0 - math.fsum(steps), *steps]))


@coefficients(base="unused", models=(1, 1), affine=False, reference="none: the tensors as they are")
def passthrough(count: int, *, scale: PerModel = (1.0,)) -> Mixture:
    """One model as it is, or scaled.

    w = scale w1. With scale 1 the bytes are copied.

    Arguments: ``scale``, default 1. Returns weights ``(1,)``. Cost: one pass.

    >>> from stockpot.methods import get_method
    >>> get_method("passthrough")(1, {"scale": (0.5,)}).weights
    array([0.5])
    """
    return Mixture(each(scale, count))
