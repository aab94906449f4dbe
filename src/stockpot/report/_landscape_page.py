"""Landscapes and barriers as one HTML file: words first, then pictures, then numbers."""

from __future__ import annotations

import math

from stockpot.report._landscape import barrier_summary, landscape_names, landscape_summary, number, off_plane
from stockpot.report._landscape_figures import barrier_pictures, landscape_pictures
from stockpot.report._names import short_names
from stockpot.report._page import rendered_page
from stockpot.soups import Barriers, Landscape, Line


def landscape_page(found: Landscape) -> str:
    """One self-contained file."""
    names = landscape_names(found)
    metrics = list(found.marks[0].scores)
    points = {
        "heading": "Points",
        "headings": ["point", *metrics, "from the plane"],
        "rows": [
            [
                names[mark.name],
                *(number(mark.scores[metric]) for metric in metrics),
                off_plane(found, mark),
            ]
            for mark in found.marks
        ],
    }
    return rendered_page(
        "study",
        landscape_pictures(found),
        title=f"Landscape of {found.metric} around {names[found.base]}",
        refs=[("base", found.base), *_refs(found.models), *([("centre", found.centre)] if found.centre else [])],
        summary=landscape_summary(found),
        warnings=found.warnings,
        tables=[points, _lines(found.lines, names)],
    )


def barrier_page(found: Barriers) -> str:
    """One self-contained file."""
    base = [] if found.base is None else [("base", found.base)]
    return rendered_page(
        "study",
        barrier_pictures(found),
        title=f"Barriers of {found.metric} between {len(found.models)} models",
        refs=[*base, *_refs(found.models)],
        summary=barrier_summary(found),
        warnings=found.warnings,
        tables=[_lines(found.lines, short_names(found.models))],
    )


def _refs(models: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(str(place), model) for place, model in enumerate(models, start=1)]


def _lines(lines: tuple[Line, ...], names: dict[str, str]) -> dict[str, object]:
    rows = []
    for line in lines:
        height, place = line.barrier
        rows.append(
            [
                f"{names[line.start]} to {names[line.end]}",
                number(line.values[0]),
                number(line.values[len(line.values) // 2]),
                number(line.values[-1]),
                number(height),
                f"{place:.2g}" if height else "",
                number(line.advantage),
                "" if line.angle is None else f"{math.degrees(line.angle):.1f}",
            ]
        )
    headings = ["line", "start", "middle", "end", "barrier", "at", "advantage", "angle (degrees)"]
    return {"heading": "Lines", "headings": headings, "rows": rows}
