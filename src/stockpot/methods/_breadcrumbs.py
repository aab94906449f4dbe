"""Model breadcrumbs: task vectors without their largest and their smallest elements."""

from __future__ import annotations

from stockpot.kernels import Sum
from stockpot.methods._base import PerModel, each, elementwise, shares
from stockpot.methods._rule import Form, Rule
from stockpot.methods._trimmed import Trimmed

_REFERENCE = "Davari and Belilovsky, Model breadcrumbs, arXiv 2312.06795"


@elementwise(base="required", models=(1, None), reference=_REFERENCE, recipe_required=("weight",), passes=2)
def breadcrumbs(
    form: Form,
    *,
    weight: PerModel = (1.0,),
    density: PerModel = (1.0,),
    gamma: PerModel = (0.01,),
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Rule:
    """The base plus task vectors without outliers and without what is negligible.

    Of the n magnitudes of each task vector d_i = w_i - w0 the round(gamma n) largest are left out, but no more than
    ``density`` leaves over; of the others the round(density n) largest are kept, of equal ones the first:
    w = w0 + lambda sum_i weight_i m_i d_i.

    Arguments: ``weight``, one for each model (default 1); ``density``, share that is kept, 0 to 1 (default 1);
    ``gamma``, share of the largest that is left out, 0 to 1 (default 0.01); ``normalize``, divide by the sum of the
    weights; ``rescale``, give what is kept of a task vector the sum of magnitudes that the whole had; ``lambda``, scale
    of the whole step. Returns the rule. Raises ParameterError for shares outside 0 to 1. Cost: a sample and two passes,
    without a sort. Reference: arXiv 2312.06795, section 3.

    >>> import torch, stockpot
    >>> base, model = {"w": torch.zeros(4)}, {"w": torch.tensor([9.0, -2.0, 3.0, 1.0])}
    >>> given = {"density": 0.5, "gamma": 0.25}
    >>> stockpot.merge_state_dicts("breadcrumbs", base=base, models=[model], parameters=given)["w"]
    tensor([ 0., -2.,  3.,  0.])
    """
    return _masked("breadcrumbs", form, weight, density, gamma, rescale, Sum(False, normalize, lambda_))


@elementwise(base="required", models=(1, None), reference=_REFERENCE, recipe_required=("weight",), passes=2)
def breadcrumbs_ties(
    form: Form,
    *,
    weight: PerModel = (1.0,),
    density: PerModel = (1.0,),
    gamma: PerModel = (0.01,),
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Rule:
    """Breadcrumbs with the sign consensus of TIES.

    As ``breadcrumbs``; then at each element the sign of the sum of the weighted parts is elected (zero: positive), and
    only parts that have it are added.

    Arguments: as ``breadcrumbs``; ``normalize`` divides, at each element, by the weights of the parts that were added.
    Returns the rule. Raises ParameterError for shares outside 0 to 1. Cost: a sample and two passes. Reference: arXiv
    2312.06795, section 3, with arXiv 2306.01708.

    >>> import torch, stockpot
    >>> base = {"w": torch.zeros(2)}
    >>> models = [{"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([-1.0, 1.0])}]
    >>> stockpot.merge_state_dicts("breadcrumbs_ties", base=base, models=models)["w"]
    tensor([3., 2.])
    """
    return _masked("breadcrumbs_ties", form, weight, density, gamma, rescale, Sum(True, normalize, lambda_))


def _masked(
    name: str, form: Form, weight: PerModel, density: PerModel, gamma: PerModel, rescale: bool, total: Sum
) -> Rule:
    kept = shares(name, "density", density, form.models)
    top = shares(name, "gamma", gamma, form.models)
    return Trimmed(name, form, "middle", tuple(each(weight, form.models)), kept, total, top, rescale)
