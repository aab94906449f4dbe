"""What a landscape, or lines between models, say: sentences and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from stockpot.report._names import more_is_better, short_names
from stockpot.soups import Barriers, Landscape, Line, Mark

TITLES = {"mean": "mean", "model_stock": "Model Stock"}


def landscape_names(found: Landscape) -> dict[str, str]:
    """Short names of everything that is marked."""
    refs = [found.base, *found.models, *([] if found.centre is None else [found.centre])]
    return {**TITLES, **short_names(refs)}


def landscape_summary(found: Landscape) -> list[str]:
    """Sentences: who scores what, is there a barrier, where the plane is best."""
    names = landscape_names(found)
    better = max if found.direction == "max" else min

    def value(mark: Mark) -> float:
        return mark.scores[found.metric]

    base = next(mark for mark in found.marks if mark.sort == "base")
    best = better((mark for mark in found.marks if mark.sort == "model"), key=value)
    parts = [f"base {number(value(base))}", f"best fine-tune {number(value(best))} ({names[best.name]})"]
    parts += [f"{names[mark.name]} {number(value(mark))}" for mark in found.marks if mark.sort in TITLES]
    parts += [f"centre {number(value(mark))}" for mark in found.marks if mark.sort == "centre"]
    lines = [f"{found.metric} ({more_is_better(found.direction)}): {', '.join(parts)}"]
    lines += _barrier_sentences(found.lines, names)
    if found.grid is not None:
        values = found.grid.values[found.metric]
        row, column = np.unravel_index((values.argmax if found.direction == "max" else values.argmin)(), values.shape)
        x, y = found.grid.xs[column], found.grid.ys[row]
        marks = [mark for mark in found.marks if mark.x is not None and mark.y is not None]
        nearest = min(marks, key=lambda mark: math.hypot((mark.x or 0.0) - x, (mark.y or 0.0) - y))
        lines.append(
            f"best point of the plane: {number(float(values[row, column]))}; the nearest mark is {names[nearest.name]}"
        )
    return lines


def landscape_table(found: Landscape) -> Table:
    """One row for each marked point."""
    names = landscape_names(found)
    metrics = list(found.marks[0].scores)
    table = Table("point", *metrics, "from the plane", box=SIMPLE, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for mark in found.marks:
        table.add_row(names[mark.name], *(number(mark.scores[metric]) for metric in metrics), off_plane(found, mark))
    return table


def off_plane(found: Landscape, mark: Mark) -> str:
    """A point's distance from the plane; rounding of float64 counts as none."""
    if mark.off is None:
        return ""
    span = max(math.hypot(one.x or 0.0, one.y or 0.0) for one in found.marks)
    return number(mark.off) if mark.off > 1e-9 * span else "0"


def barrier_summary(found: Barriers) -> list[str]:
    """Sentences: the highest barrier, and whether middles are better than their ends."""
    names = short_names(found.models)
    worst = max(found.lines, key=lambda line: line.barrier[0])
    height, place = worst.barrier
    pairs = f"{len(found.lines)} pair{'s' if len(found.lines) > 1 else ''}"
    metric = f"{found.metric} ({more_is_better(found.direction)})"
    if height == 0.0:
        lines = [f"{metric}: no barrier between any of {pairs}: one basin, on these lines"]
    else:
        lines = [
            f"{metric}: highest barrier of {pairs}: {number(height)}, between {names[worst.start]} and "
            f"{names[worst.end]} at {place:.2g} of the way"
        ]
    gains = [line.advantage for line in found.lines]
    won = sum(gain > 0 for gain in gains)
    lines.append(
        f"the middle of two is better than the mean of their scores for {won} of {pairs} "
        f"({number(float(np.median(gains)))} at the median)"
    )
    return lines


def barrier_table(found: Barriers) -> Table:
    """One row for each pair."""
    names = short_names(found.models)
    angles = found.base is not None
    table = Table("from", "to", "ends", "middle", "barrier", "at", "advantage", box=SIMPLE, pad_edge=False)
    if angles:
        table.add_column("angle (degrees)")
    for column in table.columns[2:]:
        column.justify = "right"
    for line in found.lines:
        height, place = line.barrier
        cells = [
            names[line.start],
            names[line.end],
            f"{number(line.values[0])}, {number(line.values[-1])}",
            number(line.values[len(line.values) // 2]),
            number(height),
            f"{place:.2g}" if height else "",
            number(line.advantage),
        ]
        table.add_row(*cells, *([f"{math.degrees(line.angle):.1f}"] if line.angle is not None else []))
    return table


def number(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}"


def _barrier_sentences(lines: Sequence[Line], names: Mapping[str, str]) -> list[str]:
    """One for each barrier, one for all lines without."""
    found, free = [], []
    for line in lines:
        height, place = line.barrier
        ends = f"{names[line.start]} and {names[line.end]}"
        if height == 0.0:
            free.append(ends)
        else:
            found.append(f"barrier of {number(height)} between {ends}, at {place:.2g} of the way")
    return [*found, *([f"no barrier between {', '.join(free)}"] if free else [])]
