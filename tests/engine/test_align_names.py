"""Names that differ between inputs, and names that share storage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import stockpot
from stockpot import errors

from ._alignment import aligned, slots, state
from ._checkpoints import folder


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
