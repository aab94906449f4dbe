"""Layers by names alone, of architectures of every kind; settings by their definition."""

from __future__ import annotations

import pytest

from stockpot.engine._layers import Layers, is_before_layers, stated_counts
from stockpot.engine._modules import prefixes_of
from stockpot.recipe import Recipe, value_at


def names(*stems: str, count: int, each: int = 3) -> list[str]:
    return [f"{stem}.{layer}.part{n}.weight" for stem in stems for layer in range(count) for n in range(each)]


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ([*names("model.layers", count=4), "lm_head.weight"], {"model.layers.": 4}),
        ([*names("transformer.h", count=3), "classifier.0.weight", "classifier.2.weight"], {"transformer.h.": 3}),
        (names("encoder.block", count=2) + names("decoder.block", count=5), {"decoder.block.": 5, "encoder.block.": 2}),
        (names("features", count=6), {"features.": 6}),
        ([f"model.layers.{n}.mlp.experts.{e}.w1" for n in range(2) for e in range(8)], {"model.layers.": 2}),
        (["weight", "bias"], {}),
    ],
)
def test_lists_of_layers(given: list[str], counts: dict[str, int]) -> None:
    """The list of most tensors, and every list that is called as lists of layers are."""
    assert dict(Layers.of(given).counts) == counts


def test_each_stack_has_places_of_its_own() -> None:
    """The last encoder layer lies at 1, whatever the decoder's depth; what is outside lies at 0; one layer at 1."""
    layers = Layers.of(
        [*names("encoder.block", count=2), *names("decoder.block", count=5), *names("single.h", count=1)]
    )
    places = [layers.place(f"{stem}.x") for stem in ("encoder.block.1", "decoder.block.1", "single.h.0", "shared")]
    assert places == [1.0, 0.25, 1.0, 0.0]


@pytest.mark.parametrize(
    "name", ["wte.weight", "model.embed_tokens.weight", "bert.embeddings.LayerNorm.bias", "shared"]
)
def test_before_the_layers(name: str) -> None:
    """Embeddings and what belongs to them."""
    assert is_before_layers(name)


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.norm.weight", "embed_out.weight", "score.weight", "ln_f.bias"]
)
def test_after_the_layers(name: str) -> None:
    """Heads, the one that is called an embedding too, and last norms."""
    assert not is_before_layers(name)


def test_counts_of_a_configuration() -> None:
    """Of the model and of its parts."""
    assert stated_counts({"n_layer": 2, "vision_config": {"num_hidden_layers": 7, "depth": True}}) == {2, 7}


def test_modules_of_older_files() -> None:
    """The newest way of naming wins; a name of no table is a prefix; all of a model is ``default``."""
    assert prefixes_of("text_decoder", ["model.language_model.norm.weight", "lm_head.weight"])[-1] == "lm_head."
    assert prefixes_of("vision_tower", ["visual.blocks.0.w"]) == ("visual.",)
    assert prefixes_of("adapter", ["model.adapter.w"]) == ("model.adapter.",)
    assert (prefixes_of("default", ["w"]), prefixes_of("text_decoder", ["w"])) == (("",), ())


@pytest.mark.parametrize(
    ("setting", "place", "expected"),
    [
        ([0, 0.5, 0.3, 0.7, 1], 0.5, 0.3),
        ([0, 0.5, 0.3, 0.7, 1], 0.625, 0.5),
        ([1, 0], 1.0, 0.0),
        ([2], 0.7, 2),
        ([True, False], 0.99, True),
        (["a", "b", "c"], 0.5, "b"),
        ([{"filter": "mlp", "value": 1}, {"filter": "*", "value": [0, 1]}], 0.25, 0.25),
        ([{"filter": "attn", "value": 3}, {"value": 4}], 0.0, 3),
        ({"filter": "mlp", "value": 3}, 0.0, None),
    ],
)
def test_value_at(setting: object, place: float, expected: object) -> None:
    """Linear between neighbours for numbers, the one at floor(x) for words; the first filter that is part of a name."""
    found = value_at(setting, "model.layers.1.self_attn.q_proj.weight", place)
    assert found == expected or (isinstance(expected, float) and abs(float(str(found)) - expected) < 1e-15)


def test_round_trip() -> None:
    """What is recorded reads back as the same recipe, parts and settings too."""
    text = """
merge_method: task_arithmetic
base_model: {model: {path: org/base, revision: v1}}
slices:
  - base_model: c
    sources:
      - {model: {model: b, lora: ./x}, layer_range: [2, 4], parameters: {weight: [0.1, 0.9]}}
      - {model: c, layer_range: [1, 3]}
    parameters: {weight: [{filter: mlp, value: [0, 1]}, {value: 1}]}
overrides: [{match: norm, parameters: {weight: 0}}]
name: x
"""
    recipe = Recipe.from_yaml(text)
    assert recipe.refs == ("org/base@v1", "c", "b+./x")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_data(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize("value", [0.1, 0.3, 1e-17, 1e300, -0.7])
def test_a_gradient_between_equal_values_is_that_value(value: float) -> None:
    """To the last bit, in all layers: no tensor gets parameters of its own."""
    assert {value_at([value, value, value], "w", layer / 31) for layer in range(32)} == {value}
