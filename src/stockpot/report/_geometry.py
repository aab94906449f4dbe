"""What a geometry says, in words and as a table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.table import Table

from stockpot.engine import Geometry
from stockpot.report._text import counted

HARDLY_AGREE = 0.05
"""A median cosine under this: Model Stock stays near the base."""
OUTLIER = 2.0
"""A task vector this many times as long as the median of all, or as short, is an outlier."""
THIN = 0.1
"""Norms this close to their median, as a share, lie on a thin shell."""
FAR = 0.5
"""Task vectors of this share of the base's norm: probably not fine-tunes of that base."""
NAMED = 3
"""Names shown before "and more"."""


def geometry_summary(geometry: Geometry) -> list[str]:
    """Sentences: how many, how far from the base, at which angles, how thin a shell, how far Model Stock would go."""
    count = len(geometry.models)
    if not geometry.names:
        return ["no tensor is common to the base and the models"]
    total = geometry.by("model")
    relative, norms = total.relative_norms[0], total.norms[0]
    first = f"{count} fine-tune{'s' if count > 1 else ''} of {geometry.base}"
    if np.isfinite(relative).all():
        first += f": {_range(100 * relative, '%')} of its norm away from it"
    lines = [first]
    if count == 1:
        return lines
    moved = _moved(geometry)
    if moved.any():
        angles = np.degrees(geometry.angles[moved])
        angles = angles[np.isfinite(angles)]
    if moved.any() and angles.size:
        lines.append(
            f"median angle {np.median(angles):.0f} degrees over {int(moved.sum())} groups by {geometry.granularity} "
            f"({np.quantile(angles, 0.05):.0f} to {np.quantile(angles, 0.95):.0f} in nine of ten)"
        )
    middle = float(np.median(norms))
    if middle > 0:
        spread = float(np.abs(norms / middle - 1.0).max())
        shell = "thin shell: " if spread <= THIN else ""
        lines.append(f"{shell}norms over the whole model within {_percent(spread)} % of their median")
    if np.isfinite(total.t[0]):
        ratios = geometry.t[np.isfinite(geometry.t)]
        lines.append(
            f"Model Stock would go {100 * float(np.median(ratios)):.0f} % of the way from the base to the mean "
            f"(median; {100 * float(ratios.min()):.0f} to {100 * float(ratios.max()):.0f} %)"
        )
    return lines


def geometry_findings(geometry: Geometry) -> list[str]:
    """What someone who is about to merge should look at; nothing where all is well."""
    if not geometry.names:
        return []
    found: list[str] = []
    total = geometry.by("model")
    norms, relative = total.norms[0], total.relative_norms[0]
    for model, norm in zip(geometry.models, norms, strict=True):
        if norm == 0:
            found.append(f"{model} is identical to the base")
    for (i, j), distance in zip(geometry.pairs, total.distances[0], strict=True):
        if distance == 0 and norms[i] > 0:
            found.append(f"{geometry.models[i]} and {geometry.models[j]} are identical")
    middle = float(np.median(norms[norms > 0])) if (norms > 0).any() else 0.0
    if len(norms) > 2 and middle > 0:
        for model, norm in zip(geometry.models, norms, strict=True):
            if norm > OUTLIER * middle or 0 < norm < middle / OUTLIER:
                found.append(f"{model} is an outlier: {norm / middle:.2g} times as far from the base as the median")
    for model, share in zip(geometry.models, relative, strict=True):
        if np.isfinite(share) and share > FAR:
            found.append(f"{model} lies {100 * share:.0f} % of the base's norm away: perhaps another base")
    moved = _moved(geometry)
    if len(geometry.models) > 1 and moved.any():
        cosines = geometry.cosines[moved]
        if float(np.median(cosines)) < HARDLY_AGREE:
            found.append("the fine-tunes hardly agree (angles near 90 degrees): Model Stock stays near the base")
        apart = [name for name, own in zip(geometry.names, geometry.cosines, strict=True) if own.min() < 0]
        if apart:
            found.append(f"{counted(len(apart), 'group')} of models that disagree (a negative cosine): {_names(apart)}")
    frozen = [name for name, one in zip(geometry.names, moved, strict=True) if not one]
    if frozen and moved.any():
        found.append(f"{counted(len(frozen), 'group')} frozen (every model has the base's values): {_names(frozen)}")
    return found


def geometry_table(geometry: Geometry) -> Table:
    """One row for each group and one for the whole model."""
    with_kinds = geometry.granularity not in ("kind", "model")
    headings = [geometry.granularity, *(["kind"] if with_kinds else [])]
    table = Table(*headings, "elements", "|d| / |w0|", "angles (degrees)", "t", "t free", box=SIMPLE, pad_edge=False)
    for column in table.columns[len(headings) :]:
        column.justify = "right"
    rows = [(geometry, number) for number in range(len(geometry.names))]
    if geometry.granularity != "model" and geometry.names:
        rows.append((geometry.by("model"), 0))
    for shown, number in rows:
        relative, angles = shown.relative_norms[number], np.degrees(shown.angles[number])
        kind = "" if shown is not geometry else shown.kinds[number]
        table.add_row(
            shown.names[number] if shown is geometry else "whole model",
            *([kind] if with_kinds else []),
            f"{shown.elements[number]:,}",
            _range(relative, "") if np.isfinite(relative).all() else "base is zero",
            _range(angles, "") if angles.size else "",
            _number(shown.t[number]),
            _number(shown.t_free[number]),
        )
    return table


def _moved(geometry: Geometry) -> NDArray[np.bool_]:
    return np.asarray((geometry.norms > 0).any(axis=1))


def _percent(share: float) -> str:
    return f"{100 * share:.2g}" if share < 0.1 else f"{100 * share:.0f}"


def _range(values: NDArray[np.float64], unit: str) -> str:
    values = values[np.isfinite(values)]
    if not values.size:
        return ""
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    text = low if low == high else f"{low} to {high}"
    return f"{text} {unit}".rstrip()


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else ""


def _names(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
