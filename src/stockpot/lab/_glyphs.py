"""Digits from printed fonts, drawn the way the handwritten ones were: warped, 32 x 32, counted down to 8 x 8."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from stockpot.errors import MissingExtraError
from stockpot.lab._digits import INK, Examples, blurred
from stockpot.lab._random import uniform

FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
    "STIXGeneralBolIta.ttf",
    "cmb10.ttf",
    "cmmi10.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmti10.ttf",
    "cmtt10.ttf",
)
"""Fonts that matplotlib ships and whose ten digits are plain digits: no symbols, no dotted zeros (DejaVu Sans Mono)."""

HELD_OUT_FONTS = (
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSansMono-BoldOblique.ttf",
)
"""Fonts for a test: nothing is pre-trained on them. Their zeros are dotted, and left out."""

_SIDE = 48  # a glyph's canvas in pixels
_INK_HEIGHT = 32  # of which the glyph's own height, the rest is room for the warp
_TOP = (_SIDE - _INK_HEIGHT) // 2
_POINTS = 160  # font size at which outlines are drawn before they are scaled down


@dataclass(frozen=True)
class GlyphSet:
    """Every glyph as a field: the distance of each pixel to the glyph's centre line, in pixels of the canvas."""

    fields: Tensor  # float32 [glyph, side, side]
    labels: Tensor  # int64 [glyph]


def load_glyphs(fonts: Sequence[str] = FONTS) -> GlyphSet:
    """The ten digits of each font (deterministic; about a second); of ``HELD_OUT_FONTS`` nine.

    Raises ``MissingExtraError`` where matplotlib is not installed.
    """
    matplotlib = _import("matplotlib")
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    shown = [(font, digit) for font in fonts for digit in range(10) if digit or font not in HELD_OUT_FONTS]
    masks = torch.stack([_outline(folder / font, digit) for font, digit in shown])
    lines = _crossed(thin(_without_foot(masks)))
    return GlyphSet(torch.stack([_distance(line) for line in lines]), torch.tensor([digit for _, digit in shown]))


def render(glyphs: GlyphSet, count: int, generator: torch.Generator, *, spoiled: bool = True) -> Examples:
    """``count`` digits of random glyphs with random slant, bend, stroke width and box, as 8 x 8 counts of 0 .. 16.

    The steps are those of the handwritten set: a stroke drawn on a fine grid, its bounding box scaled to
    32 x 32 pixels, and the ink counted in blocks of 4 x 4. Then many are blurred, lose contrast or gain noise, so
    that the base, as real ones, has seen more kinds of picture than its fine-tunes will (not with ``spoiled=False``).
    """
    chosen = torch.randint(len(glyphs.labels), (count,), generator=generator)
    fields = _warp(glyphs.fields[chosen].unsqueeze(1), generator)
    stroke = uniform(1.5, 4.0, (count, 1, 1, 1), generator)
    ink = (stroke - fields + 0.5).clamp(0, 1)
    bitmap = (_to_box(ink, generator) > 0.5).to(torch.float32)
    counts = F.avg_pool2d(bitmap, 4) * INK
    return Examples(_spoil(counts, generator) if spoiled else counts, glyphs.labels[chosen])


def thin(masks: Tensor) -> Tensor:
    """The centre lines of shapes, [n, side, side] of bool, one pixel wide (Zhang and Suen, 1984)."""
    while True:
        before = masks
        for first_half in (True, False):
            masks = masks & ~_removable(masks, first_half)
        if torch.equal(before, masks):
            return masks


def _removable(masks: Tensor, first_half: bool) -> Tensor:
    """The border pixels that one half of a Zhang-Suen pass takes away."""
    padded = F.pad(masks, (1, 1, 1, 1))
    rows, columns = masks.shape[-2:]

    def neighbour(down: int, right: int) -> Tensor:
        return padded[..., 1 + down : 1 + down + rows, 1 + right : 1 + right + columns]

    # Clockwise from the pixel above: the paper's P2 .. P9.
    around = [neighbour(*at) for at in ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))]
    ring = torch.stack(around).to(torch.int8)
    filled = ring.sum(0)
    rises = ((ring == 0) & (ring.roll(-1, 0) == 1)).sum(0)
    up, right, down, left = around[0], around[2], around[4], around[6]
    if first_half:
        open_side = ~(up & right & down) & ~(right & down & left)
    else:
        open_side = ~(up & right & left) & ~(up & down & left)
    return (filled >= 2) & (filled <= 6) & (rises == 1) & open_side


def _outline(font: Path, digit: int) -> Tensor:
    """One glyph as a bool mask, its ink ``_INK_HEIGHT`` high in the middle of the canvas."""
    image, draw, fonts = (_import(f"PIL.{name}") for name in ("Image", "ImageDraw", "ImageFont"))
    canvas = image.new("L", (2 * _POINTS, 2 * _POINTS), 0)
    face = fonts.truetype(str(font), _POINTS)
    draw.Draw(canvas).text((_POINTS // 2, _POINTS // 4), str(digit), font=face, fill=255)
    glyph = canvas.crop(canvas.getbbox())
    width = max(1, round(glyph.width * _INK_HEIGHT / glyph.height))
    glyph = glyph.resize((width, _INK_HEIGHT), image.Resampling.BOX)
    mask = torch.zeros(_SIDE, _SIDE, dtype=torch.bool)
    pixels = torch.frombuffer(bytearray(glyph.tobytes()), dtype=torch.uint8).reshape(_INK_HEIGHT, width)
    left = (_SIDE - width) // 2
    mask[_TOP : _TOP + _INK_HEIGHT, left : left + width] = pixels > 127
    return mask


def _without_foot(masks: Tensor) -> Tensor:
    """The glyphs, most 1s without the foot that print gives them and a hand does not (the heaviest keep it)."""
    footless = masks.clone()
    footless[1::10, _TOP + _INK_HEIGHT - 5 :] = False
    return footless


def _crossed(lines: Tensor) -> Tensor:
    """The centre lines, every second font's 7 with a bar across, as many write it."""
    crossed = lines.clone()
    crossed[17::20, _SIDE // 2 + 1, 14:34] = True
    return crossed


def _distance(line: Tensor) -> Tensor:
    """Each pixel's distance to the nearest pixel of the line."""
    every = torch.nonzero(torch.ones_like(line)).to(torch.float32)
    return torch.cdist(every, torch.nonzero(line).to(torch.float32)).amin(1).reshape(line.shape)


def _warp(fields: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, slant and stretch each field a little, and bend it by a smooth random displacement."""
    count = len(fields)
    turn = uniform(-0.2, 0.2, (count,), generator)
    slant = uniform(-0.3, 0.3, (count,), generator)
    stretch = uniform(0.9, 1.1, (count,), generator)
    zero = torch.zeros(count)
    turning = torch.stack([turn.cos(), -turn.sin(), zero, turn.sin(), turn.cos(), zero], 1).reshape(-1, 2, 3)
    shaping = torch.stack([stretch, slant, zero, 1 / stretch], 1).reshape(-1, 2, 2)
    theta = torch.cat([shaping @ turning[..., :2], turning[..., 2:]], 2)
    grid = F.affine_grid(theta, list(fields.shape), align_corners=False)
    knots = torch.randn((count, 2, 5, 5), generator=generator) * 0.12
    bend = F.interpolate(knots, size=fields.shape[-2:], mode="bicubic", align_corners=True)
    return F.grid_sample(fields, grid + bend.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)


def _to_box(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Scale each drawing's bounding box to the full height and a random width of 32 x 32 pixels."""
    count = len(ink)
    inked = ink[:, 0] > 0.5
    top, bottom = _extent(inked.any(2))
    left, right = _extent(inked.any(1))
    # A pen that starts late or lifts early: up to an eighth of the height is missing above and below.
    height = bottom - top
    top = top + uniform(0, 0.12, (count,), generator) * height
    bottom = bottom - uniform(0, 0.12, (count,), generator) * height
    width = uniform(0.5, 0.8, (count,), generator)
    # From the output's [-1, 1] to the input's: the box [left, right] fills the share ``width`` of the output.
    zero = torch.zeros(count)
    side = ink.shape[-1]
    theta = torch.stack(
        [
            (right - left) / side / width, zero, (right + left) / side - 1,
            zero, (bottom - top) / side, (bottom + top) / side - 1,
        ],
        1,
    ).reshape(-1, 2, 3)  # fmt: skip
    grid = F.affine_grid(theta, [count, 1, 32, 32], align_corners=False)
    return F.grid_sample(ink, grid, align_corners=False)


def _spoil(counts: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, loss of contrast and noise, each on half to two thirds of the pictures and up to a random strength."""

    def amounts(low: float, high: float) -> Tensor:
        return uniform(low, high, (len(counts), 1, 1, 1), generator)

    pictures = torch.lerp(counts, blurred(counts), amounts(-1, 1).clamp(min=0))
    contrast = amounts(0.4, 1.4).clamp(max=1)
    pictures = contrast * pictures + amounts(0, 0.5) * (1 - contrast) * INK
    pictures = pictures + amounts(-2, 3).clamp(min=0) * torch.randn(counts.shape, generator=generator)
    return pictures.round().clamp(0, INK)


def _extent(inked: Tensor) -> tuple[Tensor, Tensor]:
    """The first and one past the last true column of each row, as floats."""
    flags = inked.to(torch.int8)
    first = flags.argmax(1)
    last = inked.shape[1] - flags.flip(1).argmax(1)
    return first.to(torch.float32), last.to(torch.float32)


def _import(name: str) -> ModuleType:
    """Import matplotlib, or Pillow, which comes with it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError("matplotlib", "demo") from error
