"""The dtype of what is written, and values that no merge may take."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import stockpot
from stockpot import errors

from ._alignment import aligned, slots, state


class TestDtypes:
    """What is written."""

    @pytest.mark.parametrize(
        ("base", "models", "expected"),
        [
            ("float32", ["bfloat16", "bfloat16"], "BF16"),
            ("bfloat16", ["float32", "float32"], "F32"),
            ("float32", ["bfloat16", "float32"], "F32"),
            ("float32", ["bfloat16", "float16"], "F32"),
            ("bfloat16", ["float16", "float16"], "F16"),
            ("float32", ["float32", "float64"], "F64"),
            ("float64", ["float16", "bfloat16", "float64"], "F64"),
        ],
    )
    def test_as_the_models_have_it(self, base: str, models: list[str], expected: str) -> None:
        """The dtype on which the models agree, whatever the base's; else the widest, and the plan says so."""
        made = [state("a", dtype=getattr(torch, dtype)) for dtype in models]
        found = aligned("model_stock", state("a", dtype=getattr(torch, base)), made)
        assert slots(found)["a"].dtype == expected
        assert any("widest" in note for note in found.notes) == (len(set(models)) > 1)
        wide = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
        assert any("narrower" in note for note in found.notes) == (wide[base] < min(wide[m] for m in models))

    def test_each_tensor_for_itself(self) -> None:
        """The dtype is decided per tensor."""
        half, full = state("a", dtype=torch.float16), state("b")
        found = aligned("linear", None, [half | full, half | full])
        assert {name: slot.dtype for name, slot in slots(found).items()} == {"a": "F16", "b": "F32"}

    def test_asked_for_touches_floats_only(self) -> None:
        """``dtype`` applies to floating tensors, merged, averaged or taken; integers, bools and FP8 keep theirs."""
        extra = {
            "bn.running_mean": torch.zeros(2),
            "bn.num_batches_tracked": torch.tensor(3),
            "ids": torch.arange(3),
            "mask": torch.tensor([True]),
            "q": torch.ones(2).to(torch.float8_e5m2),
        }
        found = aligned("linear", None, [state("a") | extra] * 2, dtype="bfloat16")
        assert {name: slot.dtype for name, slot in slots(found).items()} == {
            "a": "BF16",
            "bn.running_mean": "BF16",
            "bn.num_batches_tracked": "I64",
            "ids": "I64",
            "mask": "BOOL",
            "q": "F8_E5M2",
        }
        models = [state("a", "b"), state("a")]
        found = aligned("linear", None, models, missing="first", dtype="float16")
        assert slots(found)["b"].dtype == "F16"

    def test_an_overflow_of_the_output_is_refused(self) -> None:
        """A finite result that the output's dtype cannot hold is an error with name and place, merged or taken."""
        models = [{"a": torch.tensor([1.0, 7e4])}, {"a": torch.tensor([1.0, 7e4])}]
        with pytest.raises(errors.NonFiniteError, match="tensor a") as caught:
            stockpot.merge_state_dicts("linear", models=models, dtype="float16")
        assert "[1]" in caught.value.line()
        lone = [state("a"), state("a") | {"b": torch.tensor([1.0, 7e4])}]
        with pytest.raises(errors.NonFiniteError, match="tensor b"):
            stockpot.merge_state_dicts("linear", models=lone, missing="first", dtype="float16")


class TestNonFinite:
    """NaN and Inf in an input."""

    CASES = (
        ("model_stock", {}, "merge"),
        ("linear", {}, "merge"),
        ("task_arithmetic", {"weight": [0.0, 1.0]}, "no part"),
        ("slerp", {"t": 0.5}, "merge"),
    )

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize(("method", "given", "why"), CASES)
    def test_refused_with_its_place(self, method: str, given: dict[str, Any], why: str, value: float) -> None:
        """Tensor, input and first index are named, even where the input's weight is zero."""
        clean = {"a": torch.randn(3, 70_001, generator=torch.Generator().manual_seed(1))}
        models = [{"a": clean["a"] + 2}, {"a": clean["a"] + 1}]
        models[0]["a"][1, 69_999] = value
        models[0]["a"][2, 5] = value
        base = None if method == "slerp" else clean
        with pytest.raises(errors.NonFiniteError) as caught:
            stockpot.merge_state_dicts(method, base=base, models=models, parameters=given)
        assert caught.value.tensor == "a"
        assert "[1, 69999]" in caught.value.line(), why
        assert "model 1" in caught.value.line()
        out = stockpot.merge_state_dicts(method, base=base, models=models, parameters=given, allow_nonfinite=True)
        if why != "no part":
            assert not torch.isfinite(out["a"][1, 69_999])
        finite = torch.isfinite(out["a"])
        assert int((~finite).sum()) <= 2

    def test_refused_in_what_is_averaged_or_taken(self) -> None:
        """The same for running statistics and for a tensor that only some models have."""
        bad = torch.tensor([1.0, float("nan")])
        stats = [{"bn.running_var": bad} | state("a"), {"bn.running_var": torch.ones(2)} | state("a")]
        with pytest.raises(errors.NonFiniteError, match="running_var"):
            stockpot.merge_state_dicts("linear", models=stats)
        lone = [state("a"), state("a") | {"b": bad}]
        with pytest.raises(errors.NonFiniteError, match="tensor b"):
            stockpot.merge_state_dicts("linear", models=[*lone, lone[1]], missing="average")

    @pytest.mark.parametrize("policy", ["average", "first"])
    def test_refused_in_the_only_model_that_has_it(self, policy: Any) -> None:
        """The same where the policy makes the output one input's tensor: only ``exclude`` copies unseen."""
        lone = [state("a"), state("a") | {"b": torch.tensor([1.0, float("nan")])}]
        with pytest.raises(errors.NonFiniteError, match="tensor b"):
            stockpot.merge_state_dicts("linear", models=lone, missing=policy)
