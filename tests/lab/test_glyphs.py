"""Printed digits drawn as handwritten ones."""

from __future__ import annotations

import sys

import pytest
import torch

from stockpot import errors
from stockpot.lab import _glyphs
from stockpot.lab._digits import Examples
from stockpot.lab._glyphs import FONTS, GlyphSet, load_glyphs, render, thin
from stockpot.lab._random import stream


def test_every_font_gives_ten_different_digits(glyphs: GlyphSet) -> None:
    """A symbol font, or one without a digit, would repeat a shape or draw nothing."""
    assert glyphs.fields.shape == (10 * len(FONTS), 48, 48)
    assert glyphs.labels.tolist() == list(range(10)) * len(FONTS)
    lines = (glyphs.fields == 0).reshape(len(FONTS), 10, -1)
    assert lines.sum(2).min() >= 15
    for font in lines:
        assert len({line.numpy().tobytes() for line in font}) == 10


def test_glyphs_are_the_same_twice(glyphs: GlyphSet) -> None:
    """Drawing outlines and thinning them has no chance in it."""
    assert torch.equal(load_glyphs().fields, glyphs.fields)


def test_the_field_is_the_distance_to_the_line(glyphs: GlyphSet) -> None:
    """Golden values: from one pixel, its neighbours are 1 and the square root of 2 away."""
    line = torch.zeros(5, 5, dtype=torch.bool)
    line[2, 2] = True
    field = _glyphs._distance(line)
    torch.testing.assert_close(field[1, 1:4], torch.tensor([2**0.5, 1, 2**0.5]))
    torch.testing.assert_close(field[0, 0], torch.tensor(8**0.5))


def test_thinning_a_bar_leaves_its_middle_line() -> None:
    """A bar three pixels thick becomes one pixel thick, and a shape already thin stays."""
    bar = torch.zeros(1, 7, 20, dtype=torch.bool)
    bar[0, 2:5, 2:18] = True
    line = thin(bar)
    assert line[0].any(1).nonzero().flatten().tolist() == [3]
    assert 12 <= line.sum() <= 16
    assert torch.equal(thin(line), line)


def test_thinning_keeps_a_ring_a_ring() -> None:
    """The hole of a 0 survives: thinning neither fills nor opens it."""
    ring = torch.zeros(1, 15, 15, dtype=torch.bool)
    ring[0, 2:13, 2:13] = True
    ring[0, 6:9, 6:9] = False
    line = thin(ring)[0]
    assert not line[7, 7]
    reached = torch.zeros_like(line)
    reached[7, 7] = True
    for _ in range(15):  # flood the hole through edges: it must not reach the rim
        grown = reached.clone()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        reached = grown & ~line
    assert not reached[0].any()


def test_rendering_repeats_and_gives_counts(glyphs: GlyphSet) -> None:
    """One generator state gives the same pictures twice: 8 x 8 whole numbers of 0 .. 16, each with its label."""
    once, again = (render(glyphs, 300, stream(0, "draw")) for _ in range(2))
    assert torch.equal(once.images, again.images)
    assert torch.equal(once.labels, again.labels)
    assert once.images.shape == (300, 1, 8, 8)
    assert once.images.dtype == torch.float32
    assert torch.equal(once.images, once.images.round())
    assert (once.images.min(), once.images.max()) == (0, 16)
    assert once.labels.unique().tolist() == list(range(10))


def test_rendered_digits_look_like_written_ones(glyphs: GlyphSet, digits: Examples) -> None:
    """As much ink, in as tall a box: within 15 % overall, and every row of pixels used."""
    drawn = render(glyphs, 2000, stream(1, "draw")).images
    assert abs(drawn.mean() / digits.images.mean() - 1) < 0.15  # stroke widths are random: the mean moves by 1 %
    assert (drawn.mean((0, 1, 3)) / digits.images.mean((0, 1, 3)) - 1).abs().max() < 0.25
    edges, middle = drawn.mean((0, 1, 2))[[0, 7]], drawn.mean((0, 1, 2))[3:5]
    assert edges.max() < 0.25 * middle.min()


def test_rendered_pictures_differ_from_each_other(glyphs: GlyphSet) -> None:
    """The warp is each picture's own: one glyph drawn many times is never the same twice."""
    one = GlyphSet(glyphs.fields[:1], glyphs.labels[:1])
    drawn = render(one, 50, stream(2, "draw")).images
    assert len({image.numpy().tobytes() for image in drawn}) == 50


@pytest.mark.parametrize("module", ["matplotlib", "PIL.ImageFont"])
def test_a_missing_matplotlib_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Without matplotlib, or the Pillow that it brings, the error says what to install."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(errors.MissingExtraError, match=r"matplotlib is not installed.*stockpot\[demo\]"):
        load_glyphs()
