"""A geometry as one HTML file: words first, then pictures, then every number."""

from __future__ import annotations

import json
import math

import numpy as np

from stockpot.engine import Geometry
from stockpot.report._geometry import geometry_findings, geometry_summary
from stockpot.report._geometry_figures import geometry_pictures
from stockpot.report._page import rendered_page


def geometry_page(geometry: Geometry) -> str:
    """One self-contained file: no script, style, font or picture comes from elsewhere; the same bytes each time."""
    return rendered_page(
        "geometry",
        geometry_pictures(geometry),
        base=geometry.base,
        models=geometry.models,
        centre=geometry.centre,
        granularity=geometry.granularity,
        summary=geometry_summary(geometry),
        warnings=[*geometry.warnings, *geometry_findings(geometry)],
        kinds=_kinds(geometry),
        data=_data(geometry),
    )


def _kinds(geometry: Geometry) -> dict[str, list[list[str]] | list[str]]:
    shown = geometry if geometry.granularity == "model" else geometry.by("kind")
    rows = []
    for number, name in enumerate(shown.names):
        angles = np.degrees(shown.angles[number])
        angles = angles[np.isfinite(angles)]
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
        own = angles[number][np.isfinite(angles[number])]
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
