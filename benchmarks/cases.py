"""What is measured, as data: on which models, with which command, against which floor, up to which limits."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

RATIO = 1.2
COLD_RATIO = 1.1
WIDE_RATIO = 1.5
READING_RATIO = 2.0
"""Of a geometry of 16 models to plainly reading them."""
ELEMENTWISE_RATIO = 2.0
PEAK_BYTES = 500_000_000
ELEMENTWISE_PEAK_BYTES = 600_000_000
MERGEKIT_RATIO = 5.0
"""How many times as long mergekit must take."""
TIES_RATIO = 25.0
"""The same for its TIES, which sorts."""


@dataclass(frozen=True)
class Case:
    """One comparison: stockpot with ``options`` on an entry's models (at that scale), beside the floor.

    ``base``: whether the base is an input (a method without one reads the fine-tunes alone). ``reads``: how often the
    floor reads the inputs. ``ratio``, ``peak``: limits; None: measured only. ``mergekit``: method and parameters of a
    recipe for mergekit, where it is run too. ``plan``: whether a dry run is timed too.
    """

    entry: str
    options: str
    scale: float = 1.0
    fine_tunes: int = 3
    base: bool = True
    cold: bool = False
    reads: int = 1
    ratio: float | None = RATIO
    peak: int | None = PEAK_BYTES
    mergekit: Mapping[str, object] | None = None
    mergekit_ratio: float = MERGEKIT_RATIO
    plan: bool = False
    command: str = "merge"
    """``geometry`` writes nothing, and its floor neither."""


MODEL_STOCK = "--method model_stock"
LINEAR = "--method linear --set weight=[.5,.3,.2]"
TIES = "--method ties --set weight=1 --set density=.3"
DARE_TIES = "--method dare_ties --set weight=1 --set density=.3"
MERGEKIT_TIES = MappingProxyType({"merge_method": "ties", "weights": (1.0,) * 3, "density": 0.3})
TASK_ARITHMETIC = "--method task_arithmetic --set weight=[.5,.3,.1]"

CASES: Mapping[str, Case] = MappingProxyType(
    {
        "model_stock": Case("dense-bf16", MODEL_STOCK, mergekit={"merge_method": "model_stock"}),
        "linear": Case(
            "dense-bf16", LINEAR, base=False, mergekit={"merge_method": "linear", "weights": (0.5, 0.3, 0.2)}
        ),
        "task_arithmetic": Case(
            "dense-bf16", TASK_ARITHMETIC, mergekit={"merge_method": "task_arithmetic", "weights": (0.5, 0.3, 0.1)}
        ),
        "ties": Case(
            "dense-bf16",
            TIES,
            ratio=ELEMENTWISE_RATIO,
            peak=ELEMENTWISE_PEAK_BYTES,
            mergekit=MERGEKIT_TIES,
            mergekit_ratio=TIES_RATIO,
        ),
        "dare_ties": Case(
            "dense-bf16",
            DARE_TIES,
            ratio=ELEMENTWISE_RATIO,
            peak=ELEMENTWISE_PEAK_BYTES,
            mergekit=MERGEKIT_TIES,
            mergekit_ratio=TIES_RATIO,
        ),
        "linear-mean": Case("dense-bf16", "--method linear", base=False),
        "model_stock-block": Case("dense-bf16", f"{MODEL_STOCK} --granularity block", reads=2),
        "model_stock-model": Case("dense-bf16", f"{MODEL_STOCK} --granularity model", reads=2),
        "model_stock-cold": Case("dense-bf16", MODEL_STOCK, cold=True, ratio=COLD_RATIO),
        "linear-cold": Case("dense-bf16", LINEAR, base=False, cold=True, ratio=COLD_RATIO),
        "task_arithmetic-cold": Case("dense-bf16", TASK_ARITHMETIC, cold=True, ratio=COLD_RATIO),
        "fp32": Case("dense-fp32", MODEL_STOCK, scale=0.5, ratio=WIDE_RATIO),
        "fp32-cold": Case("dense-fp32", MODEL_STOCK, scale=0.5, cold=True, ratio=WIDE_RATIO),
        "one-tensor": Case("single", MODEL_STOCK, cold=True, reads=2, ratio=None),
        "16-models": Case("dense-bf16", MODEL_STOCK, scale=0.25, fine_tunes=16, ratio=None),
        "64-models": Case("dense-bf16", MODEL_STOCK, scale=0.06, fine_tunes=64, ratio=None, peak=None),
        "tensors-5k": Case("moe", MODEL_STOCK, scale=5 / 45, ratio=None, plan=True),
        "tensors-15k": Case("moe", MODEL_STOCK, scale=15 / 45, ratio=None, plan=True),
        "tensors-45k": Case("moe", MODEL_STOCK, ratio=None, plan=True),
        "geometry": Case("dense-bf16", "", ratio=None, command="geometry"),
        "geometry-16-models": Case(
            "dense-bf16", "", scale=0.25, fine_tunes=16, ratio=READING_RATIO, command="geometry"
        ),
        "geometry-45k": Case("moe", "", ratio=None, command="geometry"),
    }
)
