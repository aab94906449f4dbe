"""Pixels from files, against the library's own steps one after the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stockpot import errors
from stockpot.lab._pixels import Preparation, batches, prepared


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth and noisy parts."""
    drawn = np.random.default_rng(seed)
    small = Image.fromarray(drawn.integers(0, 256, (9, 12, 3)).astype(np.uint8)).resize((width, height), Image.BICUBIC)
    return Image.fromarray((np.asarray(small) // 2 + drawn.integers(0, 128, (height, width, 3))).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (333, 500), (224, 224), (80, 61), (1200, 301)])
def test_the_middle_of_the_resized_image(width: int, height: int, tmp_path: Path) -> None:
    """Resizing the shorter side and then cutting gives the same pixels.

    Within the library's rounding: it may take rows first in one case and columns in the other, and rounds in between.
    """
    path = tmp_path / "one.png"
    picture(width, height).save(path)
    size, short = 224, min(width, height)
    wide, high = size * width // short, size * height // short
    left, top = round((wide - size) / 2), round((high - size) / 2)
    resized = Image.open(path).convert("RGB").resize((wide, high), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((left, top, left + size, top + size)), np.int16)
    found = prepared(path, size)
    assert found.shape == (size, size, 3)
    apart = np.abs(found.astype(np.int16) - expected)
    assert apart.max() <= 6
    assert (apart > 1).mean() < 5e-3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_kind_of_image(mode: str, tmp_path: Path) -> None:
    """As RGB."""
    path = tmp_path / f"one.{'jpg' if mode == 'CMYK' else 'png'}"
    picture(60, 50).convert(mode).save(path)
    assert prepared(path, 32).shape == (32, 32, 3)


def test_batches_keep_the_order(tmp_path: Path) -> None:
    """Whatever the number of threads and the size of a batch; the last one is smaller."""
    files = []
    for number in range(11):
        files.append(tmp_path / f"{number}.png")
        Image.new("RGB", (40, 30), (20 * number, 0, 0)).save(files[-1])
    for workers, batch in ((1, 4), (3, 4), (2, 16), (5, 1)):
        found = list(batches(files, 16, batch, workers=workers))
        assert [len(own) for own in found] == [len(files[start : start + batch]) for start in range(0, 11, batch)]
        assert torch.cat(found)[:, 0, 0, 0].tolist() == [20 * number for number in range(11)]


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    """Half a JPEG, text, nothing: the file is in the message."""
    whole = tmp_path / "whole.jpg"
    picture(300, 200).save(whole)
    data = whole.read_bytes()
    for name, content in (("half.jpg", data[: len(data) // 2]), ("words.jpg", b"no image"), ("empty.png", b"")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(errors.InputError, match=rf"an image cannot be read.*{name}"):
            list(batches([whole, path, whole], 16, 2))


def test_normalised_as_published() -> None:
    """(x / 255 - mean) / deviation, channels first."""
    pixels = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    own = Preparation(4)
    found = own.normalised(pixels, "cpu", torch.float32)
    mean, deviation = torch.tensor(own.mean).double(), torch.tensor(own.deviation).double()
    expected = ((pixels.double() / 255 - mean) / deviation).permute(0, 3, 1, 2)
    assert found.double() == pytest.approx(expected, abs=1e-6)
