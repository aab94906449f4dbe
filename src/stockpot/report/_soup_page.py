"""A soup as one HTML file: the decisions in words first, then pictures, then every candidate."""

from __future__ import annotations

from stockpot.report._landscape import number
from stockpot.report._names import short_names
from stockpot.report._page import rendered_page
from stockpot.report._soup import KINDS, soup_columns, soup_summary
from stockpot.report._soup_figures import soup_pictures
from stockpot.soups import Soup


def soup_page(found: Soup, against: str | None = None) -> str:
    """One self-contained file."""
    headings, rows = soup_columns(found)
    base = [] if found.base is None else [("base", found.base)]
    return rendered_page(
        "study",
        soup_pictures(found, against),
        title=f"{KINDS[found.kind].capitalize()} of {len(found.models)} models",
        refs=[*base, *((str(place), model) for place, model in enumerate(found.models, start=1))],
        summary=[*soup_summary(found), *decisions(found)],
        warnings=found.warnings,
        tables=[{"heading": "Candidates", "headings": headings, "rows": rows}] if rows else [],
    )


def decisions(found: Soup) -> list[str]:
    """Each step of the search as a sentence."""
    names = short_names(found.models)
    sign = 1.0 if found.direction == "max" else -1.0
    sentences = []
    for step in found.steps:
        score = number(sign * step.gain)
        if step.before is None:
            start = "all models" if step.model < 0 else names[found.models[step.model]]
            sentences.append(f"start with {start}: {score}")
            continue
        name, before = names[found.models[step.model]], number(sign * step.before)
        verb = "without" if step.drop else "with"
        verdict = ("left out" if step.drop else "accepted") if step.accepted else ("kept" if step.drop else "rejected")
        sentences.append(f"{verb} {name}: {score} after {before}, {verdict}")
    return sentences
