"""The figures of the demo's study: both accuracies, and distances to the centre against error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stockpot.report._drawing import BLUE, GREEN, GREY, INK, ORANGE, PINK, RED, Data, Picture, blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {
    "one fine-tune": ("o", GREY), "best": ("v", GREY), "average of 2": ("s", BLUE), "average of": ("D", BLUE),
    "Model Stock of 2": ("P", GREEN), "Model Stock of": ("X", GREEN), "Model Stock while": ("*", GREEN),
    "greedy": (">", ORANGE), "learned": ("<", ORANGE), "ensemble": ("h", PINK), "WiSE": ("d", RED), "EMA": ("1", INK),
    "SWA": ("2", INK),
}  # fmt: skip


def demo_pictures(record: Mapping[str, Any]) -> list[Picture]:
    """Accuracies of every kind at every rate; means of fine-tunes and the control by distance to the centre."""
    rate = f"{record['gallery']['rate']:g}"
    return [
        Picture(
            "accuracies",
            "In distribution and under shift",
            "Each mark is a kind of model at one learning rate, small marks at the small rates; the thin line is one "
            f"fine-tune at {rate}, of the first repetition, on its way from the base (WiSE-FT).",
            scatter_data(record),
            draw_scatter,
        ),
        Picture(
            "distances",
            "Distance to the centre",
            f"Means of fine-tunes at {rate}: their distance to the mean of all, beside that of independent draws "
            "(line), and the errors there. Crosses: random weights as far away as each fine-tune.",
            distances_data(record),
            draw_distances,
        ),
    ]


def scatter_data(record: Mapping[str, Any]) -> Data:
    """Two accuracies of each kind and rate."""
    points = [
        {
            "kind": kind, "rate": float(rate), "x": values["accuracy"]["mean"],
            "y": values["shifted_accuracy"]["mean"],
        }
        for kind, rates in record["by_rate"].items()
        if not kind.endswith("one ratio")
        for rate, values in rates.items()
    ]  # fmt: skip
    line = [{"x": 100 - one["error"], "y": 100 - one["shifted_error"]} for one in record["gallery"]["wise_ft"]]
    return {"points": points, "wise_ft": line}


def draw_scatter(data: Data) -> Figure:
    """Figure 1 of the papers."""
    figure = blank(6.4, 4.8)
    axes = figure.subplots()
    rates = sorted({one["rate"] for one in data["points"]})
    low = min(one["x"] for one in data["points"]) - 0.5
    line = [one for one in data["wise_ft"] if one["x"] >= low]
    axes.plot([one["x"] for one in line], [one["y"] for one in line], "-", color=GREY, linewidth=0.8)
    for kind in dict.fromkeys(one["kind"] for one in data["points"]):
        marker, colour = next(look for start, look in KINDS.items() if kind.startswith(start))
        for one in data["points"]:
            if one["kind"] == kind:
                last = one["rate"] == rates[-1]
                axes.plot(
                    one["x"], one["y"], marker, color=colour, markersize=4 + 1.6 * rates.index(one["rate"]),
                    markerfacecolor=colour if last else "none", label=kind if last else None, linestyle="none",
                )  # fmt: skip
    axes.set_xlabel("accuracy in distribution, %")
    axes.set_ylabel("accuracy under shift, %")
    figure.legend(loc="outside right upper", frameon=False, fontsize=7)
    return figure


def distances_data(record: Mapping[str, Any]) -> Data:
    """As they were measured."""
    found: Data = record["gallery"]
    return found


def draw_distances(data: Data) -> Figure:
    """Left the distances against R / sqrt(N), right the errors against them."""
    figure = blank(7.2, 3.4)
    left, right = figure.subplots(1, 2)
    members = [one["members"] for one in data["means"]]
    left.plot(
        members, [one["theory"] for one in data["means"]], "-", color=INK, linewidth=0.8, label="independent draws"
    )
    left.plot(members, [one["distance"] for one in data["means"]], "o", color=BLUE)
    left.set_xlabel("fine-tunes in the mean")
    left.set_ylabel("distance to the mean of all")
    for key, filled in (("error", True), ("shifted_error", False)):
        for kind, (marker, colour) in {
            "means": ("o", BLUE), "model_stock": ("P", GREEN), "random": ("x", RED), "finetunes": (".", GREY),
        }.items():  # fmt: skip
            xs = np.array([one["distance"] for one in data[kind]])
            ys = np.array([one[key] for one in data[kind]])
            label = {"means": "means of N", "model_stock": "Model Stock of 2", "random": "random weights",
                     "finetunes": "fine-tunes"}[kind]  # fmt: skip
            face = colour if filled else "none"
            right.plot(xs, ys, marker, color=colour, markerfacecolor=face, label=label if filled else None)
    right.set_xlabel("distance to the mean of all")
    right.set_ylabel("error, % (hollow: under shift)")
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=7)
    return figure
