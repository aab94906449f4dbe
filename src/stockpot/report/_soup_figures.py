"""The figures of a soup: all candidates by two metrics, and the course of the search."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stockpot import errors
from stockpot.report._drawing import BLUE, GREEN, GREY, INK, ORANGE, RED, Data, Picture, blank
from stockpot.report._names import brief, more_is_better
from stockpot.report._soup import KINDS, soup_names
from stockpot.soups import Soup, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = {
    "tried": (".", GREY),
    "model": ("o", BLUE),
    "uniform": ("D", ORANGE),
    "greedy": ("*", RED),
    "learned": ("*", RED),
    "model_stock": ("P", GREEN),
}


def soup_pictures(found: Soup, against: str | None = None) -> list[Picture]:
    """Nothing where nothing was evaluated; the scatter; for a greedy search its course too."""
    if found.metric is None:
        return []
    others = [name for name in found.candidates[0].scores if name != found.metric]
    if against is not None and against not in others:
        raise errors.unknown_name("second metric", against, others)
    second = against or (others[0] if others else None)
    words = f"held-out {found.metric} ({more_is_better(found.direction)})"
    pictures = [
        Picture(
            "candidates",
            "Every candidate",
            f"Each mark is a model or a mixture: {words} across, "
            + (f"{second} up." if second else "one line for each sort of candidate."),
            candidates_data(found, second),
            draw_candidates,
        )
    ]
    if len(found.steps) > 1:
        pictures.append(
            Picture(
                "search",
                "The course of the search",
                f"{words} after each decision: a filled dot was accepted, a hollow one rejected; the line is the soup.",
                search_data(found),
                draw_search,
            )
        )
    return pictures


def candidates_data(found: Soup, second: str | None) -> Data:
    """Two numbers of each candidate."""
    names = soup_names(found)
    return {
        "metric": found.metric,
        "second": second,
        "points": [
            {
                "label": names[one.label],
                "sort": one.sort,
                "x": plain(one.scores[found.metric or ""]),
                "y": None if second is None else plain(one.scores[second]),
            }
            for one in found.candidates
        ],
    }


def draw_candidates(data: Data) -> Figure:
    """Figure 1 of the papers; with one metric alone, a row for each sort."""
    figure = blank(6.4, 4.4 if data["second"] else 2.8)
    axes = figure.subplots()
    sorts = [sort for sort in MARKS if any(point["sort"] == sort for point in data["points"])]
    for row, sort in enumerate(sorts):
        marker, colour = MARKS[sort]
        points = [point for point in data["points"] if point["sort"] == sort]
        xs = np.array([point["x"] for point in points], dtype=float)
        ys = np.array([point["y"] if data["second"] else row for point in points], dtype=float)
        size = {"*": 13, ".": 6}.get(marker, 7)
        axes.plot(xs, ys, marker, color=colour, markersize=size, label=KINDS[sort], linestyle="none")
    axes.set_xlabel(f"held-out {data['metric']}")
    if data["second"]:
        axes.set_ylabel(data["second"])
        figure.legend(loc="outside upper center", ncols=5, frameon=False)
    else:
        axes.set_yticks(range(len(sorts)), [KINDS[sort] for sort in sorts])
        axes.set_ylim(-0.6, len(sorts) - 0.4)
    return figure


def search_data(found: Soup) -> Data:
    """Scores of the mixtures that were tried, in order."""
    sign = 1.0 if found.direction == "max" else -1.0
    names = soup_names(found)
    return {
        "metric": found.metric,
        "steps": [
            {
                "model": "all" if step.model < 0 else names[found.models[step.model]],
                "drop": step.drop,
                "score": plain(sign * step.gain),
                "accepted": step.accepted,
            }
            for step in found.steps
        ],
    }


def draw_search(data: Data) -> Figure:
    """Step after step."""
    steps = data["steps"]
    figure = blank(6.4, 3.6)
    axes = figure.subplots()
    scores = np.array([step["score"] for step in steps], dtype=float)
    taken = [number for number, step in enumerate(steps) if step["accepted"]]
    left = [number for number, step in enumerate(steps) if not step["accepted"]]
    level = np.array([scores[max(one for one in taken if one <= number)] for number in range(len(steps))])
    axes.step(range(len(steps)), level, where="post", color=INK, linewidth=0.8)
    axes.plot(taken, scores[taken], "o", color=RED, label="accepted")
    axes.plot(left, scores[left], "o", color=GREY, markerfacecolor="none", label="rejected")
    every = -(-len(steps) // 30)
    words = [
        ("- " if step["drop"] else "+ " if number else "") + brief(step["model"], 20)
        for number, step in enumerate(steps)
    ]
    axes.set_xticks(range(0, len(steps), every), words[::every], rotation=90 if len(steps) > 6 else 0, fontsize=7)
    axes.set_ylabel(f"held-out {data['metric']}")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure
