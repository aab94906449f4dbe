"""The table of ``stockpot bench clip`` for people: ours, theirs, the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE
from rich.table import Table

from stockpot.lab._clip_rows import ClipTable
from stockpot.lab._published import MEAN


def clip_table(found: ClipTable) -> Table:
    """One row for each model; below it, where there is one, the published row and the difference in points."""
    columns = [*found.sets, *([MEAN] if any(MEAN in row.scores for row in found.rows) else [])]
    held_out = any(row.held_out is not None for row in found.rows)
    table = Table("accuracy %", box=SIMPLE, pad_edge=False)
    for title in (*columns, *(["held out"] if held_out else [])):
        table.add_column(title, justify="right")
    for row in found.rows:
        last = [] if not held_out else ["" if row.held_out is None else f"{row.held_out:.2f}"]
        table.add_row(row.label, *_cells(columns, row.scores, ".2f"), *last)
        if row.published is not None:
            blank = [""] * held_out
            table.add_row(f"  published: {row.published.what}", *_cells(columns, row.published.values, ".2f"), *blank)
            table.add_row("  difference", *_cells(columns, row.differences, "+.2f"), *blank)
    return table


def clip_summary(found: ClipTable) -> list[str]:
    """The model, the sources of published numbers, and the notes."""
    images = ", ".join(f"{name} {count:,}" for name, count in found.images.items())
    sources = list(dict.fromkeys(row.published.source for row in found.rows if row.published is not None))
    lines = [f"{found.architecture or 'a CLIP'}; images: {images}"]
    if sources:
        lines.append(f"published: {'; '.join(sources)}")
    return [*lines, *(f"note: {note}" for note in found.notes)]


def _cells(columns: Sequence[str], values: Mapping[str, float], form: str) -> list[str]:
    return [format(values[name], form) if name in values else "" for name in columns]
