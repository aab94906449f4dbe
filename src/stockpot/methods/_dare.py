"""DARE: drop at random, and rescale."""

from __future__ import annotations

from stockpot.kernels import Sum
from stockpot.methods._base import PerModel, each, elementwise, shares
from stockpot.methods._rule import Form, Rule
from stockpot.methods._trimmed import Trimmed

_REFERENCE = "Yu et al., Language models are super mario, arXiv 2311.03099"


@elementwise(base="required", models=(1, None), reference=_REFERENCE, recipe_required=("weight",), random=True)
def dare_linear(
    form: Form,
    *,
    weight: PerModel = (1.0,),
    density: PerModel = (1.0,),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
) -> Rule:
    """The base plus task vectors of which elements were dropped at random and the others scaled up.

    Each element of each task vector d_i = w_i - w0 is kept with probability ``density``, by itself, and divided by it:
    w = w0 + lambda sum_i weight_i m_i d_i / density_i, which is task arithmetic in the mean.

    Arguments: ``weight``, one for each model (default 1); ``density``, probability of being kept, 0 to 1 (default 1);
    ``normalize``, divide by the sum of the weights; ``rescale``, divide what is kept by its probability (default, the
    paper's form); ``lambda``, scale of the whole step. The seed is the merge's ``--seed``: a tensor's masks depend on
    it, on the tensor's name and on the model's position, and on nothing else. Returns the rule. Raises ParameterError
    for a density outside 0 to 1. Cost: one pass. Reference: arXiv 2311.03099, equation 2.

    >>> import torch, stockpot
    >>> base, model = {"w": torch.zeros(5)}, {"w": torch.ones(5)}
    >>> stockpot.merge_state_dicts("dare_linear", base=base, models=[model], parameters={"density": 0.5}, seed=1)["w"]
    tensor([2., 2., 2., 2., 2.])
    """
    return _dropped("dare_linear", form, weight, density, rescale, Sum(False, normalize, lambda_))


@elementwise(base="required", models=(1, None), reference=_REFERENCE, recipe_required=("weight",), random=True)
def dare_ties(
    form: Form,
    *,
    weight: PerModel = (1.0,),
    density: PerModel = (1.0,),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
) -> Rule:
    """DARE with the sign consensus of TIES.

    As ``dare_linear``; then at each element the sign of the sum of the weighted parts is elected (zero: positive), and
    only parts that have it are added.

    Arguments: as ``dare_linear``; ``normalize`` divides, at each element, by the weights of the parts that were added.
    Returns the rule. Raises ParameterError for a density outside 0 to 1. Cost: one pass. Reference: arXiv 2311.03099,
    section 3, with arXiv 2306.01708.

    >>> import torch, stockpot
    >>> base, model = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
    >>> stockpot.merge_state_dicts("dare_ties", base=base, models=[model, model])["w"]
    tensor([2., 2., 2.])
    """
    return _dropped("dare_ties", form, weight, density, rescale, Sum(True, normalize, lambda_))


def _dropped(name: str, form: Form, weight: PerModel, density: PerModel, rescale: bool, total: Sum) -> Rule:
    kept = shares(name, "density", density, form.models)
    return Trimmed(name, form, "random", tuple(each(weight, form.models)), kept, total, rescale=rescale)
