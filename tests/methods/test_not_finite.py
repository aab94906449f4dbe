"""NaN and Inf in element-wise methods: refused by name, or passed through; never turned into a number."""

from __future__ import annotations

import math

import pytest
import torch

import stockpot
from stockpot import errors

GIVEN = {
    "ties": {"density": 0.1},
    "breadcrumbs": {"density": 0.5, "gamma": 0.1},
    "breadcrumbs_ties": {"density": 0.5, "gamma": 0.1},
    "dare_linear": {},
    "dare_ties": {},
    "della": {},
    "della_linear": {},
    "sce": {},
    "nearswap": {"t": 0.05},
    "arcee_fusion": {},
    "ram": {},
    "ramplus_tl": {},
}
BASE = {"w": torch.linspace(-1, 1, 40), "b": torch.zeros(16)}
MODEL = {"w": BASE["w"] * 1.1, "b": torch.tensor([math.inf, -math.inf, math.nan] + [1.0] * 13)}


@pytest.mark.parametrize("name", GIVEN)
def test_refused_with_its_place(name: str) -> None:
    """The first of them, also where magnitudes are ranked first: a search among infinite ones ends."""
    with pytest.raises(errors.NonFiniteError, match=r"index \[0\]; tensor b"):
        stockpot.merge_state_dicts(name, base=BASE, models=[MODEL], parameters=GIVEN[name])


@pytest.mark.parametrize("name", GIVEN)
def test_passed_through(name: str) -> None:
    """Inf stays Inf, with its sign, and NaN stays NaN; other elements and tensors are numbers."""
    out = stockpot.merge_state_dicts(name, base=BASE, models=[MODEL], parameters=GIVEN[name], allow_nonfinite=True)
    assert out["b"][:2].tolist() == [math.inf, -math.inf]
    assert out["b"][2].isnan()
    assert out["b"][3:].isfinite().all()
    assert out["w"].isfinite().all()


@pytest.mark.parametrize(("density", "moved"), [(0.1, 2), (0.5, 10), (1.0, 20)])
def test_differences_beyond_float32(density: float, moved: int) -> None:
    """Of bfloat16 numbers that are finite, their difference in float32 is not: as many are kept as asked for."""
    base, model = {"w": torch.full((20,), -3e38).bfloat16()}, {"w": torch.full((20,), 3e38).bfloat16()}
    out = stockpot.merge_state_dicts("ties", base=base, models=[model], parameters={"density": density})["w"]
    assert int((out.float() > 0).sum()) == moved


def test_weights_that_cancel_are_refused_where_they_divide_everything() -> None:
    """As for task arithmetic; by consensus they cancel element by element, and the sum is left as it is."""
    given = {"normalize": True, "weight": [1.0, -1.0]}
    for name in ("dare_linear", "breadcrumbs", "della_linear"):
        with pytest.raises(errors.ParameterError, match=f"the weights of {name} sum to zero"):
            stockpot.merge_state_dicts(name, base=BASE, models=[BASE, BASE], parameters=given)
