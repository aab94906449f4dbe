"""The figures of a landscape, and of lines between models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stockpot.report._drawing import BLUE, GREEN, GREY, INK, ORANGE, PINK, RED, Data, Picture, blank
from stockpot.report._landscape import landscape_names
from stockpot.report._names import brief, more_is_better, short_names
from stockpot.soups import Barriers, Landscape, Line, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS: Mapping[str, tuple[str, str, str]] = {
    "base": ("s", INK, "base"),
    "model": ("o", BLUE, "fine-tunes"),
    "mean": ("D", ORANGE, "mean"),
    "model_stock": ("*", RED, "Model Stock"),
    "centre": ("P", GREEN, "centre"),
}
"""Sort of a point -> marker, colour, words."""
LINE_COLOURS = (BLUE, ORANGE, GREEN, PINK, RED, GREY)
MOST_LABELLED = 12


def landscape_pictures(found: Landscape) -> list[Picture]:
    """The plane, where there is one, and the lines."""
    names = landscape_names(found)
    lines = Picture(
        "lines",
        "Along straight lines",
        f"{found.metric} ({more_is_better(found.direction)}) on the way from one model to another.",
        lines_data(found.lines, names, found.metric),
        draw_lines,
    )
    if found.grid is None:
        return [lines]
    through = ", ".join(names[name] for name in found.grid.through)
    plane = Picture(
        "plane",
        "The plane through three checkpoints",
        f"{found.metric} ({more_is_better(found.direction)}) over the plane through {through}; axes are distances "
        "between weights. What does not lie in the plane stands at its foot, hollow; its own score is in the table. "
        "Dashed: the line from the base to the mean.",
        plane_data(found),
        draw_plane,
    )
    return [plane, lines]


def barrier_pictures(found: Barriers) -> list[Picture]:
    """The lines; and where there is a base, the advantage of the middle against the angle."""
    names = short_names(found.models)
    pictures = [
        Picture(
            "lines",
            "Between each two models",
            f"{found.metric} ({more_is_better(found.direction)}) on the way from one model to another.",
            lines_data(found.lines, names, found.metric),
            draw_lines,
        )
    ]
    if found.base is not None:
        data = {
            "metric": found.metric,
            "pairs": [
                {"pair": f"{names[line.start]} - {names[line.end]}", "angle": math.degrees(line.angle),
                 "advantage": plain(line.advantage), "barrier": plain(line.barrier[0])}
                for line in found.lines if line.angle is not None
            ],
        }  # fmt: skip
        pictures.append(
            Picture(
                "advantage",
                "Is their middle better than they are?",
                "Each dot is a pair of models: how much better their middle scores than they do at the mean, against "
                "the angle between their task vectors.",
                data,
                draw_advantage,
            )
        )
    return pictures


def plane_data(found: Landscape) -> Data:
    """Grid values of the deciding metric, marked points, the line from base to mean."""
    assert found.grid is not None
    names = landscape_names(found)
    points = [
        {
            "name": names[mark.name], "sort": mark.sort, "x": mark.x, "y": mark.y, "off_plane": mark.off,
            "score": plain(mark.scores[found.metric]),
        }
        for mark in found.marks
    ]  # fmt: skip
    return {
        "metric": found.metric,
        "direction": found.direction,
        "through": [names[name] for name in found.grid.through],
        "xs": list(found.grid.xs),
        "ys": list(found.grid.ys),
        "values": [[plain(one) for one in row] for row in found.grid.values[found.metric].tolist()],
        "points": points,
    }


def draw_plane(data: Data) -> Figure:
    """Filled contours with marked points."""
    from matplotlib.colors import BoundaryNorm

    figure = blank(6.8, 5.4)
    axes = figure.subplots()
    axes.grid(visible=False)
    values = np.array(data["values"], dtype=float)
    finite = values[np.isfinite(values)]
    if finite.size:
        shown = np.where(np.isfinite(values), values, finite.max() if data["direction"] == "min" else finite.min())
        colours = "viridis" if data["direction"] == "max" else "viridis_r"
        levels = _levels(finite, data["direction"])
        norm = BoundaryNorm(levels, 256)
        filled = axes.contourf(data["xs"], data["ys"], shown, levels=levels, cmap=colours, norm=norm)
        axes.contour(data["xs"], data["ys"], shown, levels=levels, colors="#ffffff", linewidths=0.4)
        figure.colorbar(filled, label=data["metric"], format="%.4g")
    _draw_marks(axes, data["points"])
    axes.set_aspect("equal")
    axes.set_xlabel(f"distance along {brief(data['through'][0])} to {brief(data['through'][1])}")
    axes.set_ylabel(f"distance towards {brief(data['through'][2])}")
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    return figure


def _levels(values: Any, direction: str) -> list[float]:
    """Fifteen contours, closer to each other near the best value, where models lie, than in the far corners."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return [low - 0.5, low + 0.5]
    steps = [(number / 14) ** 2 for number in range(15)]
    if direction == "min":
        return [low + (high - low) * step for step in steps]
    return [high - (high - low) * step for step in reversed(steps)]


def _draw_marks(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.patheffects import withStroke

    span = max(math.hypot(point["x"], point["y"]) for point in points) or 1.0
    ends = {point["sort"]: (point["x"], point["y"]) for point in points if point["sort"] in ("base", "mean")}
    if len(ends) == 2:
        axes.plot(*zip(ends["base"], ends["mean"], strict=True), "--", color="#ffffff", linewidth=1.0)
    seen: set[str] = set()
    numbered = 0
    for point in points:
        marker, colour, words = MARKS[point["sort"]]
        inside = point["off_plane"] <= 1e-3 * span
        axes.plot(
            [point["x"]], [point["y"]], marker, color=colour, markersize=11 if marker == "*" else 7,
            markerfacecolor=colour if inside else "none", markeredgecolor="#ffffff" if inside else colour,
            markeredgewidth=0.7 if inside else 1.6, label=None if words in seen else words, linestyle="none",
        )  # fmt: skip
        seen.add(words)
        if point["sort"] == "model":
            numbered += 1
            axes.annotate(
                str(numbered), (point["x"], point["y"]), textcoords="offset points", xytext=(5, 4), fontsize=8,
                color="#000000", path_effects=[withStroke(linewidth=2.0, foreground="#ffffff")],
            )  # fmt: skip


def lines_data(lines: Sequence[Line], names: Mapping[str, str], metric: str) -> Data:
    """The deciding number along each line."""
    found = [
        {
            "start": names[line.start],
            "end": names[line.end],
            "places": list(line.places),
            "values": [plain(value) for value in line.values],
        }
        for line in lines
    ]
    return {"metric": metric, "lines": found}


def draw_lines(data: Data) -> Figure:
    """One curve for each line; beyond a dozen they are not told apart."""
    figure = blank(6.8, 4.0)
    axes = figure.subplots()
    many = len(data["lines"]) > MOST_LABELLED
    for number, line in enumerate(data["lines"]):
        colour = GREY if many else LINE_COLOURS[number % len(LINE_COLOURS)]
        style = ("-", "--")[number // len(LINE_COLOURS) % 2]
        label = None if many else f"{brief(line['start'])} to {brief(line['end'])}"
        values = np.array(line["values"], dtype=float)
        axes.plot(line["places"], values, style, color=colour, linewidth=1.3, marker=".", label=label)
    axes.set_xlabel("share of the second model")
    axes.set_ylabel(data["metric"])
    if not many:
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def draw_advantage(data: Data) -> Figure:
    """One dot for each pair."""
    figure = blank(5.6, 3.8)
    axes = figure.subplots()
    pairs = data["pairs"]
    axes.axhline(0.0, color=INK, linewidth=0.6)
    gains = np.array([one["advantage"] for one in pairs], dtype=float)
    axes.plot([one["angle"] for one in pairs], gains, "o", color=BLUE)
    axes.set_xlabel("angle between task vectors (degrees)")
    axes.set_ylabel(f"{data['metric']}: middle better\nthan the ends' mean by")
    return figure
