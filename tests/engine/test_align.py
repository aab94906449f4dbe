"""Which tensors correspond, and what becomes of those that do not: decided from names and shapes alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import stockpot
from stockpot import errors

from ._alignment import aligned, decided, slots, state, used


class TestMissing:
    """A tensor that some input lacks."""

    BASE = state("a", "b", "old")
    MODELS = (state("a", "b", "new"), state("a", "new"), state("a", "b", "new"))

    def test_all_are_listed_at_once(self) -> None:
        """By default one error names every missing tensor and who lacks it; ten lines at most are shown."""
        with pytest.raises(errors.MissingTensorError) as caught:
            aligned("model_stock", self.BASE, self.MODELS)
        told = {line.split(":")[0]: line for line in caught.value.problems}
        assert told.keys() == {"b", "new", "old"}
        assert "model 2" in told["b"]
        assert "model 1" not in told["b"]
        assert "base" in told["new"]
        assert all(model in told["old"] for model in ("model 1", "model 2", "model 3"))
        for option in ("--missing", "--exclude"):
            assert option in caught.value.line()
        many = {f"n{number}": torch.ones(1) for number in range(25)}
        with pytest.raises(errors.MissingTensorError) as caught:
            aligned("linear", None, [many | state("a"), state("a")])
        assert len(caught.value.problems) == 25
        assert caught.value.lines()[-1] == "  and 15 more"
        assert len(caught.value.lines()) == 12

    def test_one_alone_is_in_the_first_line(self) -> None:
        """A single missing tensor needs no list."""
        with pytest.raises(errors.MissingTensorError) as caught:
            aligned("linear", None, [state("a", "b"), state("a")])
        assert caught.value.tensor == "b"
        assert "model 2" in caught.value.line()
        assert caught.value.lines() == [caught.value.line()]

    def test_base(self) -> None:
        """``base`` takes the base's tensor unmerged; what the base lacks too is still an error."""
        with pytest.raises(errors.MissingTensorError) as caught:
            aligned("model_stock", self.BASE, self.MODELS, missing="base")
        assert caught.value.tensor == "new"
        found = aligned("model_stock", self.BASE, self.MODELS, missing="base", exclude="new")
        assert decided(found)["b"] == ("missing", "base")
        assert used(slots(found)["b"]) == used(slots(found)["old"]) == [0]

    def test_average(self) -> None:
        """``average`` is the plain mean of the models that have it, never of the base; a ratio is never formed."""
        found = aligned("model_stock", self.BASE, self.MODELS, missing="average")
        assert used(slots(found)["b"]) == [1, 3]
        assert slots(found)["b"].weights == (0.5, 0.5)
        assert used(slots(found)["new"]) == [1, 2, 3]
        assert slots(found)["a"].action == "merge"
        assert {slots(found)[name].action for name in ("b", "new")} == {"mix"}
        assert set(decided(found)) == {"b", "new", "old"}
        assert "old" not in slots(found)

    def test_average_of_one_is_its_bytes(self) -> None:
        """The mean of the only model that has a tensor is that model's, bit by bit."""
        own = {"x": torch.tensor([1.0, -0.0, 3e-45])}
        out = stockpot.merge_state_dicts("linear", models=[state("a"), state("a") | own], missing="average")
        assert torch.equal(out["x"].view(torch.int32), own["x"].view(torch.int32))

    def test_first(self) -> None:
        """``first`` takes the first model that has it."""
        found = aligned("model_stock", self.BASE, (*self.MODELS[1:], self.MODELS[0]), missing="first")
        assert decided(found)["b"] == ("missing", "first")
        assert used(slots(found)["b"]) == [2]
        assert used(slots(found)["new"]) == [1]

    def test_a_template_only_base_may_lack_anything(self) -> None:
        """A base that is no ingredient is not asked for tensors."""
        found = aligned("linear", state("a"), [state("a", "b"), state("a", "b")])
        assert set(slots(found)) == {"a", "b"}
        assert found.decisions == ()
        assert all(used(slot) == [1, 2] for slot in found.slots)

    def test_average_refuses_other_shapes(self) -> None:
        """A mean over tensors of several shapes is refused, not cropped."""
        models = [state("a", "b"), state("a", "b", shape=(3, 3)) | state("a"), state("a")]
        with pytest.raises(errors.MismatchError, match="tensor b"):
            aligned("linear", None, models, missing="average")


class TestMismatch:
    """Shapes, or integer values, that differ."""

    def test_shapes(self) -> None:
        """Unequal shapes are refused with both shapes, all tensors at once."""
        models = [state("a", "b", "c"), state("a") | state("b", "c", shape=(4, 3))]
        with pytest.raises(errors.MismatchError) as caught:
            aligned("model_stock", state("a", "b", "c"), models)
        told = "\n".join(caught.value.lines())
        for part in ("[2, 3]", "[4, 3]", "tensor b", "tensor c", "--mismatch", "model 2"):
            assert part in told, told

    def test_shapes_are_never_broadcast(self) -> None:
        """(3,) and (1, 3), a scalar and (1,), are mismatches like any other."""
        for left, right in (((3,), (1, 3)), ((), (1,)), ((2, 3), (3, 2)), ((0, 2), (2, 0))):
            with pytest.raises(errors.MismatchError):
                aligned("linear", None, [state("a", shape=left), state("a", shape=right)])

    @pytest.mark.parametrize(("policy", "number", "shape"), [("base", 0, (2, 3)), ("first", 1, (5, 3))])
    def test_one_inputs_tensor(self, policy: str, number: int, shape: tuple[int, ...]) -> None:
        """``base`` and ``first`` take that input's tensor unmerged, and the template is one of its shape."""
        models = [state("a") | state("b", shape=(5, 3)), state("a") | state("b", shape=(4, 3))]
        found = aligned("model_stock", state("a", "b"), models, mismatch=policy)
        assert decided(found) == {"b": ("mismatch", policy)}
        assert used(slots(found)["b"]) == [number]
        assert slots(found)["b"].shape == shape
        assert slots(found)["a"].action == "merge"
        assert found.template == number

    def test_integers_equal_over_the_models(self) -> None:
        """Equal integers are copied after a check; the base's may differ in value, shape, even be absent of range."""
        ids = {"ids": torch.arange(4)}
        base = state("a") | {"ids": torch.arange(9)}
        found = aligned("model_stock", base, [state("a") | ids, state("a") | ids])
        assert slots(found)["ids"].action == "same"
        assert used(slots(found)["ids"]) == [1, 2]
        out = stockpot.merge_state_dicts("model_stock", base=base, models=[state("a") | ids, state("a") | ids])
        assert torch.equal(out["ids"], ids["ids"])
        assert out["ids"].dtype == torch.int64

    @pytest.mark.parametrize(
        ("left", "right"),
        [
            (torch.arange(4), torch.arange(4) + 1),
            (torch.tensor([True, False]), torch.tensor([True, True])),
            (torch.ones(3, dtype=torch.float8_e4m3fn), torch.full((3,), 2.0).to(torch.float8_e4m3fn)),
            (torch.tensor([1], dtype=torch.uint8), torch.tensor([2], dtype=torch.uint8)),
            (torch.tensor([1 + 2j]), torch.tensor([1 - 2j])),
        ],
        ids=("int", "bool", "fp8", "packed", "complex"),
    )
    def test_integers_that_differ(self, left: Tensor, right: Tensor) -> None:
        """Unequal tensors on which no method computes are refused by name; ``first`` takes the first model's."""
        models = [state("a") | {"q": left}, state("a") | {"q": right}]
        with pytest.raises(errors.MismatchError) as caught:
            stockpot.merge_state_dicts("linear", models=models)
        assert caught.value.tensor == "q"
        assert "--mismatch" in caught.value.line()
        out = stockpot.merge_state_dicts("linear", models=models, mismatch="first")
        assert out["q"].dtype == left.dtype
        assert torch.equal(out["q"].view(torch.uint8), left.view(torch.uint8))

    def test_integers_of_other_shapes_or_dtypes(self) -> None:
        """An integer tensor of another shape or dtype is a mismatch before any data is read."""
        first = state("a") | {"ids": torch.arange(4)}
        for other in (torch.arange(5), torch.arange(4, dtype=torch.int32), torch.ones(4)):
            with pytest.raises(errors.MismatchError, match="tensor ids"):
                aligned("linear", None, [first, state("a") | {"ids": other}])

    def test_a_counter_is_the_first_models(self) -> None:
        """A 0-d integer counter is no mismatch, and is recorded."""
        models = [{"bn.num_batches_tracked": torch.tensor(n)} | state("a") for n in (7, 5)]
        base = {"bn.num_batches_tracked": torch.tensor(1)} | state("a")
        found = aligned("model_stock", base, models)
        assert decided(found) == {"bn.num_batches_tracked": ("counter", "first")}
        assert stockpot.merge_state_dicts("linear", models=models)["bn.num_batches_tracked"].item() == 7

    def test_running_statistics_are_plain_means(self) -> None:
        """``running_mean`` and ``running_var``: the mean of the models whatever the method and its weights."""
        models = [
            {"bn.running_mean": torch.full((2,), n), "bn.running_var": torch.full((2,), 10 * n)} | state("a")
            for n in (1.0, 2.0, 6.0)
        ]
        base = {"bn.running_mean": torch.zeros(2), "bn.running_var": torch.ones(2)} | state("a")
        for method, given in (("model_stock", {}), ("linear", {"weight": [5.0, 1.0, 1.0]}), ("task_arithmetic", {})):
            out = stockpot.merge_state_dicts(method, base=base, models=models, parameters=given)
            assert torch.equal(out["bn.running_mean"], torch.full((2,), 3.0)), method
            assert torch.equal(out["bn.running_var"], torch.full((2,), 30.0)), method
        found = aligned("model_stock", base, models)
        assert set(decided(found).values()) == {("statistics", "mean")}
        assert "BatchNorm" in found.notes[-1]


class TestSelection:
    """``only`` and ``exclude``."""

    BASE = state("enc.a", "enc.b", "dec.a")
    MODELS = (state("enc.a", "enc.b", "dec.a"), state("enc.a", "enc.b", "dec.a"))

    def test_exclude_wins(self) -> None:
        """Both are searched anywhere in the output's name; what is unselected is copied and recorded."""
        found = aligned("model_stock", self.BASE, self.MODELS, only=["enc", "dec"], exclude=["b$"])
        assert [name for name, slot in slots(found).items() if slot.action == "merge"] == ["enc.a", "dec.a"]
        assert decided(found) == {"enc.b": ("selection", "copied")}
        assert used(slots(found)["enc.b"]) == [found.template] == [1]

    def test_what_is_copied_raises_nothing(self) -> None:
        """An unselected tensor may be missing, of any shape, or NaN; its bytes and dtype are the template's."""
        odd = torch.tensor([float("nan"), float("inf"), -0.0], dtype=torch.bfloat16)
        models = [state("a") | {"x": odd}, state("a", "x", shape=(4,)), state("a")]
        models[1]["a"] = torch.ones(2, 3)
        out = stockpot.merge_state_dicts("linear", models=models, exclude=["^x$"], dtype="float64", template="1")
        assert out["x"].dtype == torch.bfloat16
        assert torch.equal(out["x"].view(torch.int16), odd.view(torch.int16))
        assert out["a"].dtype == torch.float64

    def test_where_a_copy_comes_from(self) -> None:
        """The template if it has it, else the base, else the first model that has it."""
        base, models = state("a", "x", "y"), [state("a", "z"), state("a", "x", "z")]
        found = aligned("model_stock", base, models, only="^a$", template="2")
        assert {name: used(slots(found)[name]) for name in "xyz"} == {"x": [2], "y": [0], "z": [2]}
        found = aligned("model_stock", base, [state("a"), state("a", "w")], only="^a$", template="1")
        assert {name: used(slots(found)[name]) for name in "xyw"} == {"x": [0], "y": [0], "w": [2]}

    @pytest.mark.parametrize("option", ["only", "exclude"])
    def test_a_pattern_that_matches_nothing(self, option: str) -> None:
        """A pattern without effect is a mistake, not a wish."""
        with pytest.raises(errors.UsageError, match="nowhere"):
            aligned("linear", None, self.MODELS, **{option: ["enc", "nowhere"]})

    @pytest.mark.parametrize("option", ["only", "exclude"])
    def test_a_pattern_that_is_none(self, option: str) -> None:
        """A pattern that cannot be compiled is refused by name."""
        with pytest.raises(errors.ParameterError, match=f"--{option}"):
            aligned("linear", None, self.MODELS, **{option: ["(" * 3]})

    def test_everything_unselected_is_a_copy(self) -> None:
        """Excluding all gives the template's bytes."""
        models = [{"a": torch.randn(4, generator=torch.Generator().manual_seed(n))} for n in (1, 2)]
        out = stockpot.merge_state_dicts("linear", models=models, exclude=["."])
        assert torch.equal(out["a"], models[0]["a"])


class TestTemplate:
    """Whose names, files and side files the output takes."""

    def test_the_first_model_that_fits(self) -> None:
        """The models in order, then the base; the first whose names and shapes are the output's."""
        assert aligned("model_stock", state("a"), [state("a"), state("a")]).template == 1
        assert aligned("linear", state("a"), [state("a"), state("a")]).template == 1
        assert aligned("linear", None, [state("a"), state("a")]).template == 0
        models = [state("a"), state("a", "b"), state("a", "b")]
        assert aligned("linear", None, models, missing="average").template == 1
        models = [state("a") | state("h", shape=(9,)), state("a") | state("h", shape=(4,))]
        assert aligned("model_stock", state("a") | state("h", shape=(5,)), models, mismatch="base").template == 0

    def test_asked_for(self) -> None:
        """``base``, or the number of a model; anything else is refused."""
        for asked, number in (("base", 0), ("1", 1), ("2", 2)):
            assert aligned("model_stock", state("a"), [state("a")] * 2, template=asked).template == number
        for asked in ("0", "3", "-1", "first", ""):
            with pytest.raises(errors.UsageError, match="--template"):
                aligned("model_stock", state("a"), [state("a")] * 2, template=asked)
        with pytest.raises(errors.UsageError, match="--template"):
            aligned("linear", None, [state("a")] * 2, template="base")

    def test_the_order_of_names_is_the_templates(self) -> None:
        """Tensors come out in the template's order; what it lacks follows."""
        models = [state("b", "a", "c"), state("c", "a", "b")]
        assert list(slots(aligned("linear", None, models))) == ["b", "a", "c"]
        assert list(slots(aligned("linear", None, models, template="2"))) == ["c", "a", "b"]
