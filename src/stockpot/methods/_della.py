"""DELLA: drop at random, the small ones more often, and rescale."""

from __future__ import annotations

from stockpot import errors
from stockpot.kernels import Sum
from stockpot.methods._base import PerModel, each, elementwise, shares
from stockpot.methods._rule import Form, Rule
from stockpot.methods._trimmed import Trimmed

_REFERENCE = "Deep et al., DELLA-merging, arXiv 2406.11617"


@elementwise(base="required", models=(1, None), reference=_REFERENCE, recipe_required=("weight",), random=True)
def della(
    form: Form,
    *,
    weight: PerModel = (1.0,),
    density: PerModel = (1.0,),
    epsilon: PerModel = (0.15,),
    normalize: bool = True,
    rescale: bool = True,
    lambda_: float = 1.0,
) -> Rule:
    """The base plus task vectors of which elements were dropped at random by the rank of their magnitude; by consensus.

    In each row of a task vector d_i = w_i - w0 (what one index of the first axis holds; all of a vector) the element of
    rank r among L, least first, is kept with probability p = density - epsilon + 2 epsilon r / (L - 1) and divided by
    p. Then as TIES: at each element the sign of the sum of the weighted parts is elected (zero: positive), and those
    that have it are added.

    Arguments: ``weight``, one for each model (default 1); ``density``, mean probability, 0 to 1 (default 1: all is
    kept; at 0 and 1 ``epsilon`` plays no part); ``epsilon``, half the spread of the probabilities (default 0.15);
    ``normalize``, divide by the weights of the parts that were added (default); ``rescale``, divide by the probability
    (default, the paper's form); ``lambda``, scale of the whole step. Masks depend on the seed, the tensor's name and
    the model's position alone. Returns the rule. Raises ParameterError for a density outside 0 to 1, and where a
    probability would not lie between 0 and 1. Cost: one pass, and a sort of each row. Reference: arXiv 2406.11617,
    section 3.1, with epsilon the half-width.

    >>> import torch, stockpot
    >>> base, models = {"w": torch.zeros(2)}, [{"w": torch.tensor([2.0, -2.0])}, {"w": torch.tensor([4.0, 1.0])}]
    >>> stockpot.merge_state_dicts("della", base=base, models=models)["w"]
    tensor([ 3., -2.])
    """
    return _ranked("della", form, weight, density, epsilon, rescale, Sum(True, normalize, lambda_))


@elementwise(base="required", models=(1, None), reference=_REFERENCE, recipe_required=("weight",), random=True)
def della_linear(
    form: Form,
    *,
    weight: PerModel = (1.0,),
    density: PerModel = (1.0,),
    epsilon: PerModel = (0.15,),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
) -> Rule:
    """DELLA without sign consensus.

    As ``della``, but all parts are added: w = w0 + lambda sum_i weight_i m_i d_i / p_i.

    Arguments: as ``della``; ``normalize`` divides by the sum of all weights (default not). Returns the rule. Raises
    ParameterError as ``della``. Cost: one pass, and a sort of each row. Reference: arXiv 2406.11617, section 3.1.

    >>> import torch, stockpot
    >>> base, model = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    >>> stockpot.merge_state_dicts("della_linear", base=base, models=[model])["w"]
    tensor([1., 1.])
    """
    return _ranked("della_linear", form, weight, density, epsilon, rescale, Sum(False, normalize, lambda_))


def _ranked(
    name: str, form: Form, weight: PerModel, density: PerModel, epsilon: PerModel, rescale: bool, total: Sum
) -> Rule:
    kept = shares(name, "density", density, form.models)
    reach = tuple(float(one) for one in each(epsilon, form.models))
    for share, half in zip(kept, reach, strict=True):
        if share not in (0.0, 1.0) and not 0.0 < share - abs(half) <= share + abs(half) < 1.0:
            raise errors.ParameterError(
                f"density and epsilon of {name} give probabilities outside 0 to 1",
                expected="density - epsilon above 0, density + epsilon below 1",
                got=f"{share} and {half}",
            )
    return Trimmed(name, form, "ranked", tuple(each(weight, form.models)), kept, total, reach, rescale)
