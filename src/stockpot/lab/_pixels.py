"""Image files -> batches of pixels, as CLIP wants them: threads decode and resize ahead of the model.

The pixels are those of resizing the shorter side (bicubic) and cutting out the middle: only the middle is computed.
Pillow lets go of the interpreter while it decodes and resizes, so that threads use all cores.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stockpot import errors

AHEAD = 2
"""Batches that are prepared while the model works on one."""
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Preparation:
    """Side of the square that the model sees, and what its channels are normalised by (OpenAI's numbers)."""

    size: int
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    deviation: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def data(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def normalised(self, pixels: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """``(N, side, side, 3)`` bytes as ``(N, 3, side, side)`` numbers, where the model is."""
        rows, side = pixels.shape[0], pixels.shape[2]
        # Whole rows of pixels at once: three numbers at a time would take three times as long.
        mean, deviation = (
            torch.tensor(own, device=device).mul(255.0).repeat(side) for own in (self.mean, self.deviation)
        )
        found = pixels.to(device).to(torch.float32).view(rows, -1, 3 * side).sub_(mean).div_(deviation)
        return found.view(rows, -1, side, 3).permute(0, 3, 1, 2).to(dtype)


def preparation_of(folder: Path | None, size: int) -> Preparation:
    """By ``preprocessor_config.json`` beside the weights, else CLIP's own; what differs from the model is refused."""
    path = None if folder is None else folder / "preprocessor_config.json"
    if path is None or not path.is_file():
        return Preparation(size)
    try:
        given = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise errors.InputError(f"the image processor cannot be read ({error})", file=str(path)) from None
    crop = given.get("crop_size", size)
    sides = set(crop.values()) if isinstance(crop, dict) else {crop}
    if sides != {size}:
        raise errors.InputError(
            "the image processor is for another model", file=str(path), expected=f"crop_size {size}", got=sorted(sides)
        )
    own = Preparation(size)
    mean, deviation = given.get("image_mean", own.mean), given.get("image_std", own.deviation)
    return Preparation(size, tuple(mean), tuple(deviation))


def prepared(path: Path, size: int, border: int = 0) -> Pixels:
    """One image: ``(size, size, 3)``. InputError that names the file where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            opened.load()
            image: Image.Image = opened if opened.mode == "RGB" else opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise errors.InputError(f"an image cannot be read ({error})", file=str(path), remedy="fetch it again") from None
    if border:
        image = image.crop((border, border, image.width - border, image.height - border))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, middle(image.width, image.height, size)))


def middle(width: int, height: int, size: int) -> tuple[float, float, float, float]:
    """The part of the image that is in the middle once its shorter side is ``size``, in its own pixels.

    >>> [round(own, 2) for own in middle(500, 375, 224)]
    [62.08, 0.0, 437.92, 375.0]
    """
    short = min(width, height)
    wide, high = size * width // short, size * height // short
    left, top = round((wide - size) / 2), round((high - size) / 2)
    x, y = width / wide, height / high
    return left * x, top * y, (left + size) * x, (top + size) * y


def threads(count: int | None) -> int:
    """As many as asked for, else one for each core that this process may use."""
    if count is not None and count < 1:
        raise errors.ParameterError("threads for images", expected="1 or more", got=count)
    return count or len(os.sched_getaffinity(0))


def batches(
    files: Sequence[Path], size: int, batch: int, *, border: int = 0, workers: int | None = None
) -> Iterator[Tensor]:
    """Pixels in the order of the files, ``(N, size, size, 3)``, bytes."""
    places = [range(start, min(start + batch, len(files))) for start in range(0, len(files), batch)]
    with ThreadPoolExecutor(threads(workers), thread_name_prefix="images") as pool:
        waiting: deque[tuple[Pixels, list[Future[None]]]] = deque()

        def one(out: Pixels, row: int, path: Path) -> None:
            out[row] = prepared(path, size, border)

        def begin(own: range) -> None:
            out = np.empty((len(own), size, size, 3), np.uint8)
            waiting.append((out, [pool.submit(one, out, row, files[place]) for row, place in enumerate(own)]))

        try:
            for number in range(len(places) + AHEAD):
                if number < len(places):
                    begin(places[number])
                if number >= AHEAD:
                    out, jobs = waiting.popleft()
                    for job in jobs:
                        job.result()
                    yield torch.from_numpy(out)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
