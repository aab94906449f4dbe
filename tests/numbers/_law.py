"""The law of numbers as data: methods with generic coefficients, and the comparison with exact arithmetic."""

import numpy as np
import torch
from tests.oracles import exact
from tests.oracles.data import merge_to_disk

METHODS = {
    "linear": (3, False, {"weight": [0.6180339887, 0.4142135624, 0.7320508076]}),
    "wise_ft": (1, True, {"alpha": 0.3819660113}),
    "task_arithmetic": (3, True, {"weight": [0.5772156649, -0.2718281828, 0.4142135624], "lambda": 0.8414709848}),
    "slerp": (1, True, {"t": 0.4342944819}),
    "model_stock": (3, True, {}),
}
"""Name: number of models, whether it takes a base, parameters."""


def assert_lawful(out, weights, inputs):
    """Every element is the exact sum with the recorded coefficients, rounded once.

    The law would allow a few neighbours (1 in 100,000 for float32); float64 is held to a rounding for each operation,
    of the magnitudes involved.
    """
    if out.dtype == torch.float64:
        sums, sizes = exact.combination(weights, inputs), np.abs([exact.numbers(one) for one in inputs])
        reach = (np.abs(weights)[:, None] * sizes).sum(axis=0) + np.abs(weights).sum() * sizes[0]
        assert (np.abs(exact.numbers(out) - sums) <= (len(weights) + 2) * 2.0**-53 * reach + 2.0**-1074).all()
        return
    assert exact.wrongly_rounded(out, weights, inputs) == []


def merged_and_recorded(folder, method, base, models, **options):
    """(output, recorded weights, inputs in the order of the weights) of a merge of single tensors on disk."""
    takes_base = METHODS[method][1]
    tensors, record, _ = merge_to_disk(
        folder, method, {"w": base} if takes_base else None, [{"w": model} for model in models], **options
    )
    inputs = [base, *models] if takes_base else list(models)
    return tensors["w"], np.array(record["groups"]["w"]["weights"]), inputs
