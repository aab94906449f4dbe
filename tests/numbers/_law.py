"""The law of numbers as data: methods with generic coefficients, and the comparison with exact arithmetic."""

import numpy as np
import torch
from tests.oracles import exact
from tests.oracles.data import HALVES, merge_to_disk

SHARE = {torch.float32: 1e-5, torch.bfloat16: 1e-4, torch.float16: 1 / 2000}
"""Elements that may differ from the correctly rounded value."""
CANCELLED = 2.0**-12
"""Results smaller than this share of their inputs may be off by more than a step."""

# Coefficients far from every short fraction p/q. Near one, a share 1/(2q) of the exact results lies so close to
# half-way between two values that a last bit of the coefficient decides; those have a test of their own.
METHODS = {
    "linear": (3, False, {"weight": [0.6180339887, 0.4142135624, 0.7320508076]}),
    "wise_ft": (1, True, {"alpha": 0.3819660113}),
    "task_arithmetic": (3, True, {"weight": [0.5772156649, -0.2718281828, 0.4142135624], "lambda": 0.8414709848}),
    "slerp": (1, True, {"t": 0.4342944819}),
    "model_stock": (3, True, {}),
}
"""Name: number of models, whether it takes a base, parameters."""


def assert_lawful(out, weights, inputs):
    """At most the law's share of elements is not the exact sum rounded once, and those are its neighbours.

    A tensor too small to hold the share may have one such element. float64 has no stated share: there the bound is a
    rounding for each operation, of the magnitudes involved.
    """
    sums = exact.combination(weights, inputs)
    sizes = np.abs([exact.numbers(one) for one in inputs])
    if out.dtype == torch.float64:
        reach = (np.abs(weights)[:, None] * sizes).sum(axis=0) + np.abs(weights).sum() * sizes[0]
        assert (np.abs(exact.numbers(out) - sums) <= (len(weights) + 2) * 2.0**-53 * reach + 2.0**-1074).all()
        return
    correct = torch.from_numpy(exact.rounded(sums, out.dtype)).to(out.dtype)
    off = exact.steps(out.flatten(), correct).numpy()
    cancelled = np.abs(sums) < CANCELLED * sizes.max(axis=0, initial=0)
    assert off[~cancelled].max(initial=0) <= 1
    wrong = int((off > 0).sum())
    assert wrong <= max(1.0, SHARE[out.dtype] * out.numel()), f"{wrong} of {out.numel()} not correctly rounded"


def merged_and_recorded(folder, method, base, models, **options):
    """(output, recorded weights, inputs in the order of the weights) of a merge of single tensors on disk."""
    takes_base = METHODS[method][1]
    tensors, record, _ = merge_to_disk(
        folder, method, {"w": base} if takes_base else None, [{"w": model} for model in models], **options
    )
    inputs = [base, *models] if takes_base else list(models)
    return tensors["w"], np.array(record["groups"]["w"]["weights"]), inputs


def assert_wide_before_rounding(out, weights, inputs):
    """Every element is that of a sum computed in the law's wide dtype and rounded once.

    The sum may be off by a rounding of the wide dtype for each difference, coefficient, product and addition, in units
    of the magnitudes involved; whatever the coefficients, no element may differ from the correctly rounded by more.
    """
    sums = exact.combination(weights, inputs)
    values = [exact.numbers(one) for one in inputs]
    steps = np.abs(weights[1:])[:, None] * np.abs([value - values[0] for value in values[1:]])
    narrow = all(one.dtype in HALVES for one in inputs)
    reach = np.abs(values[0]) * max(1.0, abs(float(sum(weights)))) + 4 * steps.sum(axis=0)
    slack = reach * (2.0**-24 if narrow else 2.0**-53)
    low, high = exact.rounded(sums - slack, out.dtype), exact.rounded(sums + slack, out.dtype)
    found = exact.numbers(out)
    assert ((low <= found) & (found <= high)).all()
