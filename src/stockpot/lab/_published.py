"""Numbers that the papers and their authors' checkpoints have, in per cent; nothing else is shown beside a row.

[paper]: stated by Jang et al. (Model Stock, arXiv 2403.19522), Wortsman et al. (Model Soups, 2203.05482; WiSE-FT,
2109.01903). [measured]: read from the authors' released checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stockpot import errors

MEAN = "mean of 5"
_COLUMNS = ("ImageNet", "V2", "Sketch", "R", "ObjectNet", "A", MEAN)
_STOCK, _SOUPS, _WISE = "Model Stock, arXiv 2403.19522", "Model Soups, arXiv 2203.05482", "WiSE-FT, arXiv 2109.01903"


@dataclass(frozen=True)
class Published:
    """One row of a paper, or of its authors' checkpoint; ``key`` is what a user calls it."""

    key: str
    architecture: str
    source: str
    what: str
    values: Mapping[str, float]


def _row(key: str, architecture: str, source: str, what: str, *values: float) -> Published:
    """All seven columns, or ImageNet and the mean."""
    columns = _COLUMNS if len(values) == len(_COLUMNS) else ("ImageNet", MEAN)
    return Published(key, architecture, source, what, dict(zip(columns, values, strict=True)))


ROWS = (
    _row("stock-after", "ViT-B/32", _STOCK, "released checkpoint, 2 fine-tunes merged after training",
         79.67, 69.22, 47.18, 67.24, 47.28, 32.52, 52.69),
    _row("stock-during", "ViT-B/32", _STOCK, "released checkpoint, merged while training",
         79.89, 68.93, 46.21, 64.29, 46.31, 29.23, 50.99),
    _row("stock-stronger", "ViT-B/32", _STOCK, "released checkpoint, while training, stronger recipe",
         81.33, 70.48, 45.82, 60.96, 42.87, 23.99, 48.82),
    _row("stock-headline", "ViT-B/32", _STOCK, "as the paper states it", 81.19, 48.69),
    _row("stock-headline", "ViT-B/16", _STOCK, "as the paper states it", 85.2, 60.1),
    _row("stock-headline", "ViT-L/14", _STOCK, "as the paper states it, stronger recipe", 87.7, 73.5),
    _row("soup-best-single", "ViT-B/32", _SOUPS, "best of 72 on held-out data", 80.38, 47.83),
    _row("soup-uniform", "ViT-B/32", _SOUPS, "mean of 72", 79.97, 51.45),
    _row("soup-greedy", "ViT-B/32", _SOUPS, "greedy soup, 5 of 72", 81.03, 50.75),
    Published("zero-shot", "ViT-L/14", _WISE, "zero-shot, the paper's demonstration", {"ImageNet": 75.5, "R": 87.8}),
    Published("wise-ft-0.75", "ViT-L/14", _WISE, "alpha .75, the paper's demonstration", {"ImageNet": 86.0, "R": 87.4}),
)  # fmt: skip


def published(key: str | None, architecture: str | None) -> Published | None:
    """The row of that key for that architecture, or None."""
    return next((row for row in ROWS if (row.key, row.architecture) == (key, architecture)), None)


def require_key(key: str) -> None:
    """UnknownNameError where no row has that key."""
    known = {row.key for row in ROWS}
    if key not in known:
        raise errors.unknown_name("published row", key, known)
