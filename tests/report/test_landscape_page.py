"""The report of a landscape, and of barriers."""

from __future__ import annotations

import math
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from stockpot.report import (
    barrier_page,
    barrier_pictures,
    barrier_summary,
    landscape_page,
    landscape_pictures,
    landscape_summary,
    save_pictures,
)
from stockpot.soups import Barriers, Grid, Landscape, Line, Mark

from ._browser import needs_browser, screenshot, visit

PLACES = (0.0, 0.5, 1.0)


def line(start: str, end: str, *values: float, angle: float | None = None, direction: str = "min") -> Line:
    """Three points."""
    return Line(start, end, PLACES, tuple({"loss": value} for value in values), "loss", direction, angle)


def made(hostile: bool = False, bad: float = 3.0) -> Landscape:
    """A landscape over three fine-tunes, two of them and the mean in the plane."""
    refs = ("runs/a", "runs/b", "runs/c</script><img src=http://example.invalid/x>" if hostile else "runs/c")
    marks = [
        Mark("runs/base", "base", {"loss": 1.0}, 0.0, 0.0, 0.0),
        *(
            Mark(ref, "model", {"loss": 0.4 + 0.1 * n}, 2.0 - n, 1.2 * n, 1e-12 if n < 2 else 0.7)
            for n, ref in enumerate(refs)
        ),
        Mark("mean", "mean", {"loss": 0.35}, 1.0, 0.5, 0.0),
        Mark("model_stock", "model_stock", {"loss": 0.3}, 0.9, 0.45, 0.1),
        Mark("far/centre", "centre", {"loss": 0.31}, 0.9, 0.4, 0.2),
    ]
    xs, ys = tuple(np.linspace(-0.5, 2.5, 7).tolist()), tuple(np.linspace(-0.5, 1.5, 7).tolist())
    values = np.array([[(x - 1) ** 2 + (y - 0.5) ** 2 + 0.3 for x in xs] for y in ys])
    values[0, 0] = bad
    lines = [
        line("runs/base", refs[0], 1.0, 0.5, 0.4),
        line(refs[0], refs[1], 0.4, 0.8, 0.5, angle=1.0),
        line("runs/base", "mean", 1.0, 0.5, 0.35),
    ]
    grid = Grid(("runs/base", refs[0], refs[1]), xs, ys, {"loss": values})
    return Landscape(
        "runs/base", refs, "far/centre", "loss", "min", tuple(marks), tuple(lines), grid, 5, 0, ("a warning",)
    )


def pairs() -> Barriers:
    """Lines between three models."""
    models = ("a", "b", "c")
    lines = (
        line("a", "b", 0.4, 0.3, 0.4, angle=1.0),
        line("a", "c", 0.4, 0.9, 0.5, angle=1.4),
        line("b", "c", 0.4, 0.44, 0.5, angle=1.2),
    )
    return Barriers("base", models, "loss", "min", lines, 6, 0)


def test_sentences() -> None:
    """Who scores what; one sentence for each barrier, one for all lines without; where the plane is best."""
    assert landscape_summary(made()) == [
        "loss (less is better): base 1, best fine-tune 0.4 (a), mean 0.35, Model Stock 0.3, centre 0.31",
        "barrier of 0.35 between a and b, at 0.5 of the way",
        "no barrier between base and a, base and mean",
        "best point of the plane: 0.3; the nearest mark is mean",
    ]
    assert barrier_summary(pairs()) == [
        "loss (less is better): highest barrier of 3 pairs: 0.45, between a and c at 0.5 of the way",
        "the middle of two is better than the mean of their scores for 2 of 3 pairs (0.01 at the median)",
    ]


@pytest.mark.parametrize("bad", [3.0, math.inf, -math.inf])
def test_pictures(bad: float, tmp_path: Path) -> None:
    """Each is drawn, with its data as strict JSON; a corner that diverged does not blank the others."""
    import json

    for pictures in (landscape_pictures(made(bad=bad)), barrier_pictures(pairs())):
        for path in save_pictures(pictures, tmp_path):
            if path.suffix == ".json":
                json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
            elif path.suffix == ".png":
                pixels = matplotlib.image.imread(path)[..., :3]
                assert len(np.unique((pixels.reshape(-1, 3) * 255).astype(int), axis=0)) > 50


@needs_browser
@pytest.mark.parametrize("hostile", [False, True])
def test_a_browser_has_nothing_to_complain_of(hostile: bool, tmp_path: Path) -> None:
    """No console message; the page's own policy forbids every request, and would be heard."""
    for name, text in {"l": landscape_page(made(hostile)), "b": barrier_page(pairs())}.items():
        page = tmp_path / f"{name}.html"
        page.write_text(text, "utf-8")
        found = visit(page)
        assert found.console == []
        assert "<img" not in found.dom
        assert len(re.findall("<figure", found.dom)) == 2


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False), (390, True)])
def test_desk_and_phone_light_and_dark(width: int, dark: bool, tmp_path: Path) -> None:
    """The paper is light or dark, and there is ink on it."""
    page = tmp_path / "l.html"
    page.write_text(landscape_page(made()), "utf-8")
    screenshot(page, tmp_path / "shot.png", width=width, height=1500, dark=dark)
    pixels = matplotlib.image.imread(tmp_path / "shot.png")[..., :3]
    paper = pixels[5, 5].mean()
    assert (paper < 0.2) if dark else (paper > 0.9)
    assert np.abs(pixels.mean(axis=2) - paper).max() > 0.6


def test_the_same_bytes_each_time() -> None:
    """No date, no random name."""
    assert landscape_page(made()) == landscape_page(made())
    assert barrier_page(pairs()) == barrier_page(pairs())
