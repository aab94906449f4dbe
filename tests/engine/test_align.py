"""Which tensors correspond, and what becomes of those that do not: decided from names and shapes alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import stockpot
from stockpot import engine, errors

from ._checkpoints import folder

State = Mapping[str, Tensor]


def aligned(method: str, base: State | None, models: Sequence[State], **policies: Any) -> engine.Alignment:
    """Align state dicts under some policies; ``dtype`` is the output's."""
    names = [f"model {number}" for number in range(1, len(models) + 1)]
    dtype = policies.pop("dtype", None)
    recipe = stockpot.Recipe.from_data(
        {
            "merge_method": method,
            "base_model": None if base is None else "base",
            "models": [{"model": name} for name in names],
            "dtype": dtype,
            "policies": policies,
        }
    )
    states = [*([("base", base)] if base is not None else []), *zip(names, models, strict=True)]
    sources = tuple(engine.MemorySource(state, name) for name, state in states)
    return engine.align(engine.resolve(recipe), engine.Inputs(sources, base is not None))


def decided(alignment: engine.Alignment) -> dict[str, tuple[str, str]]:
    """Tensor -> (policy, action)."""
    return {decision.tensor: (decision.policy, decision.action) for decision in alignment.decisions}


def slots(alignment: engine.Alignment) -> dict[str, engine.Slot]:
    """Output tensor by name."""
    return {slot.name: slot for slot in alignment.slots}


def used(slot: engine.Slot) -> list[int]:
    """Numbers of the inputs that a tensor is made of."""
    return [number for number, _ in slot.sources]


def state(*names: str, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (2, 3)) -> dict[str, Tensor]:
    """Tensors of one shape by these names."""
    return {name: torch.ones(shape, dtype=dtype) for name in names}


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


class TestRename:
    """Names that differ."""

    def test_of_one_input(self) -> None:
        """``base:`` and ``N:`` address one input, no prefix all; names come out as the models have them."""
        for rule, states in (
            ("base:^=m.", [state("a"), state("m.a"), state("m.a")]),
            ("2:^x[.]=m.", [state("m.a"), state("m.a"), state("x.a")]),
            ("^.*[.]=m.", [state("q.a"), state("r.a"), state("s.a")]),
        ):
            found = aligned("model_stock", states[0], states[1:], rename=[rule])
            assert list(slots(found)) == ["m.a"]
            assert slots(found)["m.a"].action == "merge"

    def test_groups_are_kept(self) -> None:
        """The replacement may quote what was matched; rules apply in order."""
        models = [state("layer_3_w"), state("layer.3.weight")]
        found = aligned("linear", None, models, rename=[r"1:layer_(\d+)_=layer.\1.", "1:w$=weight"])
        assert list(slots(found)) == ["layer.3.weight"]

    @pytest.mark.parametrize(
        ("first", "second", "hint"),
        [("", "bert.", "1:^=bert."), ("model.", "", "1:^model[.]="), ("", "a.b.", "1:^=a.b.")],
    )
    def test_the_refusal_says_the_very_rule(self, first: str, second: str, hint: str) -> None:
        """Where one prefix would align 90 % of the names, the message has the option, and that option works."""
        names = [f"layer.{number}.weight" for number in range(20)]
        models = [state(*(first + n for n in names)), state(*(second + n for n in names))]
        with pytest.raises(errors.MissingTensorError) as caught:
            aligned("linear", None, models)
        assert f"--rename '{hint}'" in caught.value.line()
        found = aligned("linear", None, models, rename=[hint])
        assert len(found.slots) == 20
        assert all(slot.action == "merge" for slot in found.slots)

    @pytest.mark.parametrize("prefixed", [(0,), (1, 2), (2,), (1,), (0, 1)])
    def test_the_odd_one_out_is_named(self, prefixed: tuple[int, ...]) -> None:
        """The rule addresses the input that differs from the others, be it the base or any model."""
        names = [f"layer.{number}.weight" for number in range(20)]
        states = [state(*(f"model.{n}" if k in prefixed else n for n in names)) for k in range(3)]
        with pytest.raises(errors.MissingTensorError) as caught:
            aligned("model_stock", states[0], states[1:])
        remedy = caught.value.remedy or ""
        assert "--rename '" in remedy, remedy
        rule = remedy.split("--rename '")[1].split("'")[0]
        assert len(aligned("model_stock", states[0], states[1:], rename=[rule]).slots) == 20

    def test_no_hint_below_nine_in_ten(self) -> None:
        """A prefix that would align fewer names is not offered."""
        left = [f"l.{n}" for n in range(20)]
        right = [f"m.l.{n}" for n in range(15)] + [f"m.other.{n}" for n in range(5)]
        with pytest.raises(errors.MissingTensorError) as caught:
            aligned("linear", None, [state(*left), state(*right)])
        assert "--rename" not in caught.value.line()

    @pytest.mark.parametrize(
        ("rule", "message"),
        [
            ("nothing=x", "matches nothing"),
            ("3:a=b", "input 3"),
            ("base:a=b", "input base"),
            ("a", "cannot be read"),
            ("(=x", "regular expression"),
            ("^.*$=same", "one name"),
        ],
    )
    def test_rules_that_cannot_be(self, rule: str, message: str) -> None:
        """A rule without effect, for an input that is not there, unreadable, or giving two tensors one name."""
        with pytest.raises(errors.UsageError, match=message):
            aligned("linear", None, [state("a", "b"), state("a", "b")], rename=[rule])


class TestTies:
    """Names that share storage."""

    def tied(self, value: float, *names: str) -> dict[str, Tensor]:
        """One tensor under several names, in that order, beside another."""
        tensor = torch.full((3, 2), value)
        return dict.fromkeys(names, tensor) | {"other": torch.full((2,), value)}

    def test_tied_everywhere_is_one_tensor(self) -> None:
        """It is merged once, and both names of the result are one tensor."""
        models = [self.tied(1.0, "embed", "head"), self.tied(3.0, "embed", "head")]
        found = aligned("linear", None, models)
        assert list(slots(found)) == ["embed", "other"]
        assert found.aliases == {"head": "embed"}
        assert not found.untied
        out = stockpot.merge_state_dicts("linear", models=models)
        assert out["head"].data_ptr() == out["embed"].data_ptr()
        assert torch.equal(out["embed"], torch.full((3, 2), 2.0))

    @pytest.mark.parametrize("template", [None, "1", "2"])
    def test_tied_in_another_order(self, template: str | None) -> None:
        """Which of the tied names comes first may differ between inputs; no tensor is lost, the tie stays."""
        models = [self.tied(1.0, "embed", "head"), self.tied(3.0, "head", "embed")]
        out = stockpot.merge_state_dicts("linear", models=models, template=template)
        assert out.keys() == {"embed", "head", "other"}
        assert torch.equal(out["embed"], torch.full((3, 2), 2.0))
        assert out["head"].data_ptr() == out["embed"].data_ptr()

    def test_three_names_in_another_order(self) -> None:
        """The same for three names of one tensor."""
        models = [self.tied(1.0, "shared", "encoder", "decoder"), self.tied(3.0, "decoder", "shared", "encoder")]
        out = stockpot.merge_state_dicts("linear", models=models)
        assert out.keys() == {"shared", "encoder", "decoder", "other"}
        assert len({out[name].data_ptr() for name in ("shared", "encoder", "decoder")}) == 1
        assert torch.equal(out["decoder"], torch.full((3, 2), 2.0))

    def test_tied_in_one_input_only(self) -> None:
        """Mixed inputs come out untied, each name by its own tensors."""
        untied = {"embed": torch.full((3, 2), 5.0), "head": torch.full((3, 2), 7.0), "other": torch.zeros(2)}
        for models in ([self.tied(1.0, "embed", "head"), untied], [untied, self.tied(1.0, "embed", "head")]):
            found = aligned("linear", None, models)
            assert found.untied
            assert found.aliases == {}
            out = stockpot.merge_state_dicts("linear", models=models)
            assert torch.equal(out["embed"], torch.full((3, 2), 3.0))
            assert torch.equal(out["head"], torch.full((3, 2), 4.0))
            assert out["head"].data_ptr() != out["embed"].data_ptr()

    def test_untying_is_recorded(self) -> None:
        """That mixed inputs come out untied stands among the decisions."""
        untied = {"embed": torch.full((3, 2), 5.0), "head": torch.full((3, 2), 7.0), "other": torch.zeros(2)}
        found = aligned("linear", None, [self.tied(1.0, "embed", "head"), untied])
        said = [f"{d.policy} {d.action}" for d in found.decisions] + list(found.notes)
        assert any("tie" in line for line in said), said

    def test_tied_three_ways_and_two(self) -> None:
        """Of three names tied in one input and two in the other, the two stay tied."""
        partly = self.tied(3.0, "shared", "encoder") | {"decoder": torch.full((3, 2), 9.0)}
        out = stockpot.merge_state_dicts("linear", models=[self.tied(1.0, "shared", "encoder", "decoder"), partly])
        assert out["shared"].data_ptr() == out["encoder"].data_ptr()
        assert torch.equal(out["decoder"], torch.full((3, 2), 5.0))
        assert torch.equal(out["shared"], torch.full((3, 2), 2.0))

    def test_renamed_ties(self) -> None:
        """``rename`` reaches both names of a tied tensor."""
        models = [self.tied(1.0, "embed", "head"), self.tied(3.0, "x.embed", "x.head")]
        models[1]["x.other"] = models[1].pop("other")
        out = stockpot.merge_state_dicts("linear", models=models, rename=["2:^x[.]="])
        assert out.keys() == {"embed", "head", "other"}
        assert out["head"].data_ptr() == out["embed"].data_ptr()

    def test_excluded_ties(self) -> None:
        """A tied tensor that is left alone is copied under both names."""
        models = [self.tied(1.0, "embed", "head"), self.tied(3.0, "embed", "head")]
        out = stockpot.merge_state_dicts("linear", models=models, exclude=["embed"])
        assert torch.equal(out["embed"], models[0]["embed"])
        assert torch.equal(out["head"], models[0]["embed"])

    def test_a_tied_pickle_beside_folders_that_left_the_head_out(self, tmp_path: Path) -> None:
        """A pickled base states both names; fine-tunes saved as safetensors leave the tied head out: one tensor."""
        config = {"tie_word_embeddings": True}
        tensors = [
            {"model.embed_tokens.weight": torch.full((4, 2), float(n)), "model.norm.weight": torch.ones(2)}
            for n in range(3)
        ]
        base = tmp_path / "base"
        base.mkdir()
        both = tensors[0] | {"lm_head.weight": tensors[0]["model.embed_tokens.weight"]}
        torch.save(both, base / "pytorch_model.bin")
        (base / "config.json").write_text(json.dumps(config), "utf-8")
        models = [folder(tmp_path / f"m{n}", tensors[n], config=config) for n in (1, 2)]
        out = tmp_path / "out"
        stockpot.merge("model_stock", base=base, models=models, out=out)
        assert load_file(out / "model.safetensors").keys() == tensors[1].keys()
        assert json.loads((out / "config.json").read_text("utf-8"))["tie_word_embeddings"] is True

    def test_aliases_of_the_metadata(self, tmp_path: Path) -> None:
        """An alias stated in ``__metadata__``, as the format's library writes it, is a tie like any other."""
        files = []
        for number in (1, 2):
            files.append(tmp_path / f"m{number}.safetensors")
            metadata = {"format": "pt", "head": "embed"}
            save_file({"embed": torch.full((2, 2), float(number))}, files[-1], metadata=metadata)
        out = tmp_path / "out.safetensors"
        stockpot.merge("linear", models=files, out=out)
        assert stockpot.open_checkpoint(out).aliases == {"head": "embed"}
        plain = tmp_path / "plain.safetensors"
        save_file({"embed": torch.ones(2, 2), "head": torch.zeros(2, 2)}, plain)
        stockpot.merge("linear", models=[files[0], plain], out=tmp_path / "untied.safetensors")
        untied = stockpot.open_checkpoint(tmp_path / "untied.safetensors")
        assert untied.tensors.keys() == {"embed", "head"}
        assert untied.aliases == {}


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
