"""Figures: the data first, then the drawing; the same bytes each time. Needs matplotlib.

Colours are Okabe and Ito's, told apart by the colour-blind.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockpot import errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#999999"
INK = "#010203"
"""Text and axes; the page lets it follow its own colour, light or dark."""
FORMATS = ("png", "svg", "pdf")
Data = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """One figure: a file name, words for people, plain data, and the function that draws it."""

    name: str
    title: str
    caption: str
    data: Data
    draw: Callable[[Data], Figure]


def require_drawing() -> None:
    """MissingExtraError where matplotlib or jinja2 is not installed."""
    for package in ("matplotlib", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise errors.MissingExtraError(package, "report")


def svg(picture: Picture, *, follow: bool = False) -> str:
    """One figure as SVG text. ``follow``: ink takes the surrounding text's colour."""
    text = errors.printable_lines(rendered(picture, "svg").decode())
    text = text[text.index("<svg") :]
    return re.sub(INK, "currentColor", text) if follow else text


def save_pictures(pictures: Sequence[Picture], folder: Path) -> list[Path]:
    """Every figure as PNG, SVG and PDF, its data as JSON."""
    require_drawing()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for picture in pictures:
        for kind in FORMATS:
            written.append(folder / f"{picture.name}.{kind}")
            written[-1].write_bytes(rendered(picture, kind))
        written.append(folder / f"{picture.name}.json")
        written[-1].write_text(json.dumps(picture.data, indent=1) + "\n", "utf-8")
    return written


def rendered(picture: Picture, kind: str) -> bytes:
    """The figure's file of that format."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        "svg.hashsalt": "stockpot", "text.parse_math": False, "svg.fonttype": "none", "font.size": 9.0,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#88888840",
        "savefig.dpi": 160,
    }  # fmt: skip
    out = io.BytesIO()
    with mpl.rc_context(settings):
        stamp = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}[kind]
        picture.draw(picture.data).savefig(out, format=kind, metadata=stamp, transparent=kind == "svg")
    return out.getvalue()


def blank(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
