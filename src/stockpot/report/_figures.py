"""Figures of a geometry: the data first, then the drawing; one function a figure. Needs matplotlib.

Colours are Okabe and Ito's, told apart by the colour-blind; bytes are the same each time.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stockpot import errors
from stockpot.engine import Geometry
from stockpot.measure import KINDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = dict(zip(KINDS, ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#999999"), strict=True))
INK = "#010203"
"""Text and axes; the page lets it follow its own colour, light or dark."""
MOST_GROUPS = 3000
"""More are drawn by block: a figure of 45,000 dots tells nobody anything."""
FORMATS = ("png", "svg", "pdf")
Data = Mapping[str, Any]


def require_drawing() -> None:
    """MissingExtraError where matplotlib or jinja2 is not installed."""
    for package in ("matplotlib", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise errors.MissingExtraError(package, "report")


def drawn(geometry: Geometry) -> Geometry:
    """The groups that are drawn one by one."""
    if len(geometry.names) <= MOST_GROUPS or geometry.granularity in ("block", "kind", "model"):
        return geometry
    return geometry.by("block")


def layers_data(geometry: Geometry) -> Data:
    """Per group, in the order of their names: angles in degrees, relative norms and ratio, each with its spread."""
    shown = drawn(geometry)
    angles = np.degrees(shown.angles)
    rows = []
    for number, name in enumerate(shown.names):
        relative = shown.relative_norms[number]
        rows.append(
            {
                "name": name,
                "kind": shown.kinds[number],
                "angle": _spread(angles[number]) if shown.norms[number].any() else None,
                "relative_norm": _spread(relative) if np.isfinite(relative).all() else None,
                "t": float(shown.t[number]) if np.isfinite(shown.t[number]) else None,
            }
        )
    return {"granularity": shown.granularity, "groups": rows}


def draw_layers(data: Data) -> Figure:
    """The paper's figure: angle, norm and ratio of every layer, coloured by kind; lines from least to most."""
    figure = _figure(9.0, 7.2)
    panels = figure.subplots(3, 1, sharex=True)
    labels = ("angle between task vectors\n(degrees)", "|d| / |w0|", "Model Stock's ratio t")
    for panel, field, label in zip(panels, ("angle", "relative_norm", "t"), labels, strict=True):
        for kind, colour in COLOURS.items():
            found = [
                (x, row[field])
                for x, row in enumerate(data["groups"])
                if row["kind"] == kind and row[field] is not None
            ]
            if not found:
                continue
            places = [x for x, _ in found]
            if field == "t":
                panel.plot(places, [y for _, y in found], ".", color=colour, markersize=5, label=kind)
                continue
            panel.vlines(places, [y[0] for _, y in found], [y[2] for _, y in found], color=colour, linewidth=0.8)
            panel.plot(places, [y[1] for _, y in found], ".", color=colour, markersize=5, label=kind)
        panel.set_ylabel(label)
    if any(row["relative_norm"] for row in data["groups"]):
        panels[1].set_yscale("log")
    panels[2].set_ylim(-0.03, 1.05)
    panels[2].set_xlabel(f"{data['granularity']}s, in the order of their names")
    handles, names = panels[2].get_legend_handles_labels()
    if not handles:
        handles, names = panels[1].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside upper center", ncols=6, frameon=False)
    return figure


def cosines_data(geometry: Geometry) -> Data:
    """Cosines of all pairs of models, by block."""
    blocks = geometry.by("block") if geometry.granularity in ("row", "tensor") else geometry
    moved = np.asarray((blocks.norms > 0).any(axis=1))
    return {
        "blocks": [name for name, one in zip(blocks.names, moved, strict=True) if one],
        "pairs": [f"{i + 1}-{j + 1}" for i, j in blocks.pairs],
        "cosines": blocks.cosines[moved].tolist(),
    }


def draw_cosines(data: Data) -> Figure:
    """A heat map: blocks down, pairs of models across."""
    rows, columns = len(data["blocks"]), len(data["pairs"])
    figure = _figure(min(9.0, 5.0 + 0.3 * columns), min(9.0, 1.6 + 0.22 * rows))
    axes = figure.subplots()
    axes.grid(visible=False)
    shown = axes.imshow(np.array(data["cosines"]).reshape(rows, columns), vmin=-1, vmax=1, cmap="PuOr_r", aspect="auto")
    every = -(-rows // 36)
    axes.set_yticks(range(0, rows, every), data["blocks"][::every], fontsize=7)
    across = -(-columns // 24)
    axes.set_xticks(range(0, columns, across), data["pairs"][::across], fontsize=7, rotation=90 if columns > 8 else 0)
    axes.set_xlabel("pair of models")
    figure.colorbar(shown, label="cosine between task vectors", aspect=30)
    return figure


def map_data(geometry: Geometry) -> Data:
    """Principal coordinates of base, models, mean, Model Stock and centre over the whole model."""
    places, shares = geometry.by("model").coordinates(0)
    return {"points": {name: place.tolist() for name, place in places.items()}, "shares": shares.tolist()}


def draw_map(data: Data) -> Figure:
    """Where the models lie around their base, in the plane that shows most of it."""
    figure = _figure(6.4, 5.2)
    axes = figure.subplots()
    marks = {
        "base": ("s", "#000000"),
        "mean": ("D", "#E69F00"),
        "model_stock": ("*", "#D55E00"),
        "centre": ("P", "#009E73"),
    }
    models = [name for name in data["points"] if name not in marks]
    for number, name in enumerate(models):
        x, y = data["points"][name]
        axes.plot([x], [y], "o", color="#0072B2", markersize=6, label="models" if number == 0 else None)
        if len(models) <= 20:
            axes.annotate(str(number + 1), (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8, color=INK)
    for name, (mark, colour) in marks.items():
        if name in data["points"]:
            x, y = data["points"][name]
            colour = INK if name == "base" else colour
            axes.plot([x], [y], mark, color=colour, markersize=9, label=name.replace("model_stock", "Model Stock"))
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(f"first principal axis ({100 * data['shares'][0]:.0f} % of the variance)")
    axes.set_ylabel(f"second ({100 * data['shares'][1]:.0f} %)")
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    return figure


def ratios_data(geometry: Geometry) -> Data:
    """All ratios, with their kinds."""
    pairs = [(kind, float(t)) for kind, t in zip(geometry.kinds, geometry.t, strict=True) if np.isfinite(t)]
    return {"granularity": geometry.granularity, "ratios": pairs}


def draw_ratios(data: Data) -> Figure:
    """How many groups go how far."""
    figure = _figure(6.4, 3.4)
    axes = figure.subplots()
    kinds = [kind for kind in COLOURS if any(own == kind for own, _ in data["ratios"])]
    values = [[t for own, t in data["ratios"] if own == kind] for kind in kinds]
    axes.hist(
        values, bins=np.linspace(0, 1, 41).tolist(), stacked=True, color=[COLOURS[kind] for kind in kinds], label=kinds
    )
    axes.set_xlabel("Model Stock's ratio t (0: the base, 1: the mean)")
    axes.set_ylabel(f"{data['granularity']}s")
    figure.legend(loc="outside upper center", ncols=6, frameon=False)
    return figure


FIGURES: Mapping[str, tuple[str, Callable[[Geometry], Data], Callable[[Any], Any], bool]] = {
    "layers": ("Angle, norm and ratio of every layer", layers_data, draw_layers, False),
    "cosines": ("Cosines between the models, block by block", cosines_data, draw_cosines, True),
    "map": ("Where the models lie", map_data, draw_map, True),
    "ratios": ("How far Model Stock would go", ratios_data, draw_ratios, True),
}
"""Name -> title, data, drawing, whether it takes two models."""


def figures_of(geometry: Geometry) -> list[str]:
    """The figures that this geometry has."""
    if not geometry.names or not (geometry.norms > 0).any():
        return []
    return [name for name, (_, _, _, needs_two) in FIGURES.items() if len(geometry.models) > 1 or not needs_two]


def svg(geometry: Geometry, name: str, *, follow: bool = False) -> str:
    """One figure as SVG text. ``follow``: ink takes the surrounding text's colour."""
    require_drawing()
    _, data, draw, _ = FIGURES[name]
    text = _rendered(draw, data(geometry), "svg").decode()
    text = text[text.index("<svg") :]
    return re.sub(INK, "currentColor", text) if follow else text


def save_figures(geometry: Geometry, folder: Path) -> list[Path]:
    """Every figure as PNG, SVG and PDF, its data as JSON."""
    require_drawing()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in figures_of(geometry):
        _, data, draw, _ = FIGURES[name]
        found = data(geometry)
        for kind in FORMATS:
            written.append(folder / f"{name}.{kind}")
            written[-1].write_bytes(_rendered(draw, found, kind))
        written.append(folder / f"{name}.json")
        written[-1].write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return written


def _rendered(draw: Callable[[Any], Any], data: Data, kind: str) -> bytes:
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        "svg.hashsalt": "stockpot", "svg.fonttype": "none", "font.size": 9.0,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#88888840",
        "savefig.dpi": 160,
    }  # fmt: skip
    out = io.BytesIO()
    with mpl.rc_context(settings):
        stamp = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}[kind]
        draw(data).savefig(out, format=kind, metadata=stamp, transparent=kind == "svg")
    return out.getvalue()


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _spread(values: Any) -> list[float] | None:
    """Least, mean, most."""
    return [float(values.min()), float(values.mean()), float(values.max())] if values.size else None
