"""The figure of a run that merges while it trains: ratio, angle and norm at every merge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stockpot.engine import Geometry
from stockpot.measure import Array
from stockpot.report._drawing import Data, Picture, blank
from stockpot.report._geometry_figures import COLOURS
from stockpot.train import Merge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTITIES: dict[str, tuple[str, Callable[[Geometry], Array]]] = {
    "ratio": ("ratio t", lambda found: found.t),
    "angle": ("angle [degrees]", lambda found: np.degrees(_middle(found.angles))),
    "norm": ("|w - w0| / |w0|", lambda found: _middle(found.relative_norms)),
}


def training_pictures(merges: Sequence[Merge]) -> list[Picture]:
    """One figure of a run's merges: medians over the tensors of each kind, quartiles shaded."""
    if not merges:
        return []
    return [
        Picture(
            "training",
            "Merges while training",
            f"Each of {len(merges)} merges: Model Stock's ratio, the angle between replicas and how far they are from "
            "the anchor; medians over the tensors of each kind, quartiles shaded.",
            training_data(merges),
            draw_training,
        )
    ]


def training_data(merges: Sequence[Merge]) -> dict[str, Any]:
    """Quartiles of each quantity by kind, a list over merges; None where nothing moved."""
    present = [kind for kind in COLOURS if kind in merges[0].geometry.kinds]
    return {
        "unit": merges[0].unit,
        "at": [merge.at for merge in merges],
        "kinds": {
            kind: {
                name: [_quartiles(of(merge.geometry), merge.geometry, kind) for merge in merges]
                for name, (_, of) in QUANTITIES.items()
            }
            for kind in present
        },
    }


def draw_training(data: Data) -> Figure:
    """Three panels side by side."""
    figure = blank(9.6, 3.0)
    panels = figure.subplots(1, len(QUANTITIES))
    for axes, (name, (label, _)) in zip(panels, QUANTITIES.items(), strict=True):
        for kind, found in data["kinds"].items():
            known = [(at, values) for at, values in zip(data["at"], found[name], strict=True) if values is not None]
            if known:
                where, (low, middle, high) = [at for at, _ in known], zip(*(values for _, values in known), strict=True)
                axes.plot(where, middle, "o-", color=COLOURS[kind], label=kind, markersize=3)
                axes.fill_between(where, low, high, color=COLOURS[kind], alpha=0.15, linewidth=0)
        axes.set_xlabel(f"{data['unit']}s before the merge")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylim(0, 1.03)
    panels[0].legend(frameon=False)
    return figure


def _middle(values: Array) -> Array:
    """The mean over models or pairs, of those that moved."""
    moved = np.isfinite(values)
    counted = np.where(moved.any(axis=1), moved.sum(axis=1), np.nan)
    return np.asarray(np.where(moved, values, 0.0).sum(axis=1) / counted)


def _quartiles(values: Array, geometry: Geometry, kind: str) -> list[float] | None:
    own = values[np.array([one == kind for one in geometry.kinds])]
    own = own[np.isfinite(own)]
    return None if not own.size else [float(value) for value in np.quantile(own, (0.25, 0.5, 0.75))]
