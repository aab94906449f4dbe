"""A geometry as one HTML file: words first, then pictures, then every number. Needs jinja2 and matplotlib."""

from __future__ import annotations

import json
import math

import numpy as np

from stockpot._version import __version__
from stockpot.engine import Geometry
from stockpot.report._figures import FIGURES, figures_of, require_drawing, svg
from stockpot.report._geometry import geometry_findings, geometry_summary

CAPTIONS = {
    "layers": "A dot is the mean over pairs (angle) or models (norm), a line goes from the least to the most. "
    "Fine-tunes of one recipe lie on a thin shell: short lines.",
    "cosines": "1: the two models moved in one direction; 0: at right angles; negative: against each other. "
    "Numbers are those of the list of models.",
    "map": "The plane that shows most of the points' scatter, over all weights. Distances in it are at most the true "
    "ones. Model Stock's point is that of one ratio for the whole model.",
    "ratios": "Groups at 0 stay at the base; groups at 1 take the mean of the fine-tunes.",
}


def geometry_page(geometry: Geometry) -> str:
    """One self-contained file: no script, style, font or picture comes from elsewhere; the same bytes each time."""
    require_drawing()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("stockpot.report"), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    figures = [
        {"name": name, "title": FIGURES[name][0], "caption": CAPTIONS[name], "svg": svg(geometry, name, follow=True)}
        for name in figures_of(geometry)
    ]
    return environment.get_template("geometry.html.j2").render(
        base=geometry.base,
        models=geometry.models,
        centre=geometry.centre,
        granularity=geometry.granularity,
        summary=geometry_summary(geometry),
        warnings=[*geometry.warnings, *geometry_findings(geometry)],
        figures=figures,
        kinds=_kinds(geometry),
        data=_data(geometry),
        version=__version__,
    )


def _kinds(geometry: Geometry) -> dict[str, list[list[str]] | list[str]]:
    shown = geometry if geometry.granularity == "model" else geometry.by("kind")
    rows = []
    for number, name in enumerate(shown.names):
        angles = np.degrees(shown.angles[number])
        rows.append(
            [
                name,
                f"{shown.elements[number]:,}",
                _text(float(np.mean(shown.relative_norms[number]))),
                _text(float(angles.mean())) if angles.size else "",
                _text(float(shown.t[number])),
            ]
        )
    return {"headings": ["kind", "elements", "|d| / |w0|", "angle", "t"], "rows": rows}


def _data(geometry: Geometry) -> str:
    """Headings and rows of the table, as JSON that may stand in a page."""
    headings = ["name", "kind", "elements", "|d| / |w0|", "angle, least", "angle, mean", "angle, most", "t", "t free"]
    angles = np.degrees(geometry.angles)
    rows = []
    for number, name in enumerate(geometry.names):
        own = angles[number]
        numbers = [
            float(np.mean(geometry.relative_norms[number])),
            *([float(own.min()), float(own.mean()), float(own.max())] if own.size else [math.nan] * 3),
            float(geometry.t[number]),
            float(geometry.t_free[number]),
        ]
        plain = [float(f"{one:.6g}") if math.isfinite(one) else None for one in numbers]
        rows.append([name, geometry.kinds[number], geometry.elements[number], *plain])
    return json.dumps({"headings": headings, "rows": rows}, separators=(",", ":")).replace("<", "\\u003c")


def _text(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else ""
