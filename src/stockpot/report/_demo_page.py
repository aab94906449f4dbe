"""The demo's study as one HTML file: the words first, the figures, then every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stockpot.report._demo_figures import demo_pictures
from stockpot.report._drawing import Picture
from stockpot.report._page import rendered_page

COLUMNS = {
    "accuracy": "in distribution %", "loss": "loss", "shifted_accuracy": "under shift %", "shifted_loss": "loss",
}  # fmt: skip


def demo_page(record: Mapping[str, Any], more: Sequence[Picture] = ()) -> str:
    """One self-contained file. ``more``: further figures, of the repetition that is drawn."""
    settings = record["settings"]
    tables = [_chosen(record), _by_rate("Every learning rate", record["by_rate"])]
    if record["periods"]:
        tables.append(_by_rate("Merging two replicas while they train", record["periods"]))
    many = settings["repetitions"]
    return rendered_page(
        "study",
        [*demo_pictures(record), *more],
        title=f"Handwritten digits: {settings['finetunes']} fine-tunes at {len(settings['rates'])} learning rates",
        refs=[
            ("network", f"{settings['network']}, {record['flops'] / 1e6:.1f} million operations a picture"),
            ("trained on", f"{settings['train_digits']} digits for {settings['steps']} steps of {settings['batch']}"),
            ("tested on", f"{settings['test_digits']} digits, and under shift: {', '.join(record['shifts'])}"),
            ("repetitions", f"{many}, each with its own base and training digits" if many > 1 else "1"),
        ],
        summary=record["findings"],
        warnings=[] if many > 1 else [
            "One repetition: what stands after ± are two standard errors over the test digits, and answer for no other "
            "training. stockpot demo --full repeats it all."
        ],
        tables=tables,
    )  # fmt: skip


def chosen_columns(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each kind of model at the learning rate that held-out digits choose."""
    headings = ["", "fine-tunes", "passes", "rate", *COLUMNS.values()]
    rows = []
    for row in record["rows"]:
        rates = sorted({f"{rate:g}" for rate in row["rates"]}, key=float)
        cost = [str(row["fine_tunes"]), str(row["inference"]), ", ".join(rates)]
        rows.append([row["name"], *cost, *(demo_cell(row["values"], metric) for metric in COLUMNS)])
    return headings, rows


def demo_cell(values: Mapping[str, Any], metric: str) -> str:
    """A mean with its standard error, where there is one."""
    mean, error = values[metric]["mean"], values[metric]["error"]
    digits = 2 if metric.endswith("loss") else 1
    return f"{mean:.{digits}f}" if error is None else f"{mean:.{digits}f} ± {error:.{digits}f}"


def _chosen(record: Mapping[str, Any]) -> dict[str, object]:
    headings, rows = chosen_columns(record)
    return {"heading": "Each at the learning rate that held-out digits choose", "headings": headings, "rows": rows}


def rate_columns(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each kind of model with both accuracies at every learning rate."""
    rates = list(next(iter(found.values())))
    titles = [f"{rate} {where}" for rate in rates for where in ("in %", "shift %")]
    rows = [
        [kind, *(demo_cell(values[rate], metric) for rate in rates for metric in ("accuracy", "shifted_accuracy"))]
        for kind, values in found.items()
    ]
    return ["", *titles], rows


def _by_rate(heading: str, found: Mapping[str, Any]) -> dict[str, object]:
    headings, rows = rate_columns(found)
    return {"heading": heading, "headings": headings, "rows": rows}
