"""The figures of a geometry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stockpot import errors
from stockpot.engine import Geometry
from stockpot.measure import KINDS
from stockpot.report._drawing import BLUE, GREEN, GREY, INK, ORANGE, PINK, RED, Data, Picture, blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = dict(zip(KINDS, (BLUE, ORANGE, GREEN, PINK, RED, GREY), strict=True))
MOST_GROUPS = 3000
"""More are drawn by block: a figure of 45,000 dots tells nobody anything."""


def geometry_pictures(geometry: Geometry) -> list[Picture]:
    """The figures that this geometry has: one for a single model, four for several, none where nothing moved."""
    if not geometry.names or not (geometry.norms > 0).any():
        return []
    pictures = [
        Picture(
            "layers",
            "Angle, norm and ratio of every layer",
            "A dot is the mean over pairs (angle) or models (norm), a line goes from the least to the most. "
            "Fine-tunes of one recipe lie on a thin shell: short lines.",
            layers_data(geometry),
            draw_layers,
        )
    ]
    if len(geometry.models) < 2:
        return pictures
    return [
        *pictures,
        Picture(
            "cosines",
            "Cosines between the models, block by block",
            "1: the two models moved in one direction; 0: at right angles; negative: against each other. "
            "Numbers are those of the list of models.",
            cosines_data(geometry),
            draw_cosines,
        ),
        Picture(
            "map",
            "Where the models lie",
            "The plane that shows most of the points' scatter, over all weights. Distances in it are at most the true "
            "ones. Model Stock's point is that of one ratio for the whole model.",
            map_data(geometry),
            draw_map,
        ),
        Picture(
            "ratios",
            "How far Model Stock would go",
            "Groups at 0 stay at the base; groups at 1 take the mean of the fine-tunes.",
            ratios_data(geometry),
            draw_ratios,
        ),
    ]


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
    figure = blank(9.0, 7.2)
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
        panels[1].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
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
    figure = blank(min(9.0, 5.0 + 0.3 * columns), min(9.0, 1.6 + 0.22 * rows))
    axes = figure.subplots()
    axes.grid(visible=False)
    shown = axes.imshow(np.array(data["cosines"]).reshape(rows, columns), vmin=-1, vmax=1, cmap="PuOr_r", aspect="auto")
    every = -(-rows // 36)
    axes.set_yticks(range(0, rows, every), list(map(errors.printable, data["blocks"][::every])), fontsize=7)
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
    figure = blank(6.4, 5.2)
    axes = figure.subplots()
    marks = {
        "base": ("s", INK),
        "mean": ("D", ORANGE),
        "model_stock": ("*", RED),
        "centre": ("P", GREEN),
    }
    models = [name for name in data["points"] if name not in marks]
    for number, name in enumerate(models):
        x, y = data["points"][name]
        axes.plot([x], [y], "o", color=BLUE, markersize=6, label="models" if number == 0 else None)
        if len(models) <= 20:
            axes.annotate(str(number + 1), (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8, color=INK)
    for name, (mark, colour) in marks.items():
        if name in data["points"]:
            x, y = data["points"][name]
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
    figure = blank(6.4, 3.4)
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


def _spread(values: Any) -> list[float] | None:
    """Least, mean, most."""
    values = values[np.isfinite(values)]
    return [float(values.min()), float(values.mean()), float(values.max())] if values.size else None
