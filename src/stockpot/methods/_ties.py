"""TIES: trim, elect sign, merge."""

from __future__ import annotations

from stockpot.kernels import Sum
from stockpot.methods._base import PerModel, each, elementwise, shares
from stockpot.methods._rule import Form, Rule
from stockpot.methods._trimmed import Trimmed


@elementwise(
    base="required",
    models=(1, None),
    reference="Yadav et al., TIES-merging, arXiv 2306.01708",
    recipe_required=("weight",),
    passes=2,
)
def ties(
    form: Form,
    *,
    weight: PerModel = (1.0,),
    density: PerModel = (1.0,),
    normalize: bool = True,
    lambda_: float = 1.0,
    rescale: bool = False,
) -> Rule:
    """The base plus what of the task vectors is large and agrees in sign.

    Of each task vector d_i = w_i - w0 the round(density n) elements of largest magnitude are kept; of equal ones the
    first. At each element the sign of sum_i weight_i d_i is elected (zero: positive), and those parts that have it are
    added: w = w0 + lambda sum weight_i d_i / sum weight_i over them (the division under ``normalize``).

    Arguments: ``weight``, one for each model (default 1); ``density``, share that is kept, 0 to 1 (default 1: no
    trimming; the paper keeps 0.2); ``normalize``, mean instead of sum of what agrees (default, the paper's form);
    ``lambda``, scale of the whole step; ``rescale``, give what is kept of a task vector the sum of magnitudes that the
    whole had. Where weights of opposite
    signs cancel at an element, the sum is not divided. Returns the rule. Raises
    ParameterError for a density outside 0 to 1. Cost: a sample and two passes, without a sort; one pass at density 1.
    Reference: arXiv 2306.01708, algorithm 1; the sign of weighted parts, and their weighted mean, as the field has it.

    >>> import torch, stockpot
    >>> base = {"w": torch.zeros(4)}
    >>> models = [{"w": torch.tensor([4.0, 1.0, -3.0, 0.0])}, {"w": torch.tensor([2.0, -2.0, 1.0, 0.5])}]
    >>> stockpot.merge_state_dicts("ties", base=base, models=models, parameters={"density": 0.5})["w"]
    tensor([ 3., -2., -3.,  0.])
    """
    return Trimmed(
        "ties",
        form,
        "largest",
        tuple(each(weight, form.models)),
        shares("ties", "density", density, form.models),
        Sum(consensus=True, normalize=normalize, scale=lambda_),
        rescale=rescale,
    )
