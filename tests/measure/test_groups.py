"""Which tensors share a ratio."""

import pytest

from stockpot import measure


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("encoder.layer.3.attention.weight", "encoder.layer.3"),
        ("encoder.layer.30.attention.weight", "encoder.layer.30"),
        ("model.layers.0.mlp.experts.7.up.weight", "model.layers.0"),
        ("h.11.ln_1.bias", "h.11"),
        ("blocks.5", "blocks.5"),
        ("features.0.weight", "features.0"),
        ("0.weight", "0.weight"),
        ("0.1.conv.2.weight", "0.1.conv.2"),
        ("layer1.0.conv1.weight", "layer1.0"),
        ("layer3.weight", "layer3.weight"),
        ("visual.transformer.resblocks.9.mlp.c_fc.weight", "visual.transformer.resblocks.9"),
        ("head.weight", "head.weight"),
        ("scale", "scale"),
        ("layer.3a.weight", "layer.3a.weight"),
    ],
)
def test_block_is_the_name_up_to_its_first_number_after_a_word(name, block):
    """The first integer component that follows a word ends the block; a tensor without one is its own."""
    assert measure.block_of(name) == block


def test_a_regex_of_ones_own_decides():
    """What a given regex matches is the block; no match, the name."""
    assert measure.block_of("model.layers.0.mlp.experts.7.up", r"^.*experts\.\d+") == "model.layers.0.mlp.experts.7"
    assert measure.block_of("head.weight", r"^.*experts\.\d+") == "head.weight"


@pytest.mark.parametrize(
    ("granularity", "group"),
    [("tensor", "a.layer.3.w"), ("row", "a.layer.3.w"), ("block", "a.layer.3"), ("model", "model")],
)
def test_groups(granularity, group):
    """tensor and row: the tensor; block: its block; model: one for all."""
    assert measure.group_of("a.layer.3.w", granularity) == group


def test_granularities_are_four():
    """The names that users write."""
    assert measure.GRANULARITIES == ("tensor", "row", "block", "model")
