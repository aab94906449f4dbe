"""What a soup, a sweep, evaluations or ensembles say: sentences and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE
from rich.table import Table

from stockpot.evaluate import Entry
from stockpot.report._landscape import number
from stockpot.report._names import more_is_better, short_names
from stockpot.soups import Ensembles, Evaluations, Soup, Sweep, plain

KINDS = {"model": "single", "tried": "tried", "uniform": "uniform soup", "greedy": "greedy soup",
         "learned": "learned soup", "model_stock": "Model Stock"}  # fmt: skip


def soup_names(found: Soup) -> dict[str, str]:
    """Short names of the models, and the labels of everything else as they are."""
    return {**{one.label: one.label for one in found.candidates}, **short_names(found.models)}


def soup_columns(found: Soup) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: singles in the order of the search, what was tried and whether it was taken, the soups."""
    names = soup_names(found)
    shown = found.candidates
    metrics = list(shown[0].scores) if shown else []
    tests = list(next((one.tested for one in shown if one.tested), {}))
    headings = ["candidate", "kind", *metrics, "", *(f"test {name}" for name in tests)]
    verdicts = _verdicts(found)
    rows = []
    for one in shown:
        cells = [number(one.scores[metric]) for metric in metrics]
        tested = [number(one.tested[name]) if one.tested else "" for name in tests]
        rows.append([names[one.label], KINDS[one.sort], *cells, verdicts.get(one.label, ""), *tested])
    return headings, rows


def _verdicts(found: Soup) -> dict[str, str]:
    """For each label of the search: accepted or not."""
    members = {tuple(sorted(one.weights)): one.label for one in found.candidates if one.sort in ("tried", "model")}
    return {
        members[step.members]: "start" if step.before is None else "accepted" if step.accepted else "rejected"
        for step in found.steps if step.members in members
    }  # fmt: skip


def soup_table(found: Soup) -> Table:
    """One row for each candidate."""
    headings, rows = soup_columns(found)
    table = Table(*headings, box=SIMPLE, pad_edge=False)
    for column, heading in zip(table.columns[2:], headings[2:], strict=True):
        column.justify = "right" if heading else "left"
    for row in rows:
        table.add_row(*row)
    return table


def soup_summary(found: Soup) -> list[str]:
    """Sentences: what went in, how it compares, what was found on the way."""
    names = short_names(found.models)
    members = sorted(found.weights)
    if found.metric is None:
        return [f"uniform soup of {len(members)} models"]
    lines = []
    by_sort = {one.sort: one for one in found.candidates}
    singles = [one for one in found.candidates if one.sort == "model"]
    sign = 1.0 if found.direction == "max" else -1.0
    best = max(singles, key=lambda one: sign * one.scores[found.metric or ""])
    soup = by_sort.get(found.kind, best)
    score = number(soup.scores[found.metric])
    parts = ", ".join(
        names[found.models[one]] + ("" if _even(found.weights) else f" ({found.weights[one]:.3f})") for one in members
    )
    lines.append(
        f"{KINDS[found.kind]} of {len(members)} of {len(found.models)}: {parts}; {found.metric} {score} "
        f"({more_is_better(found.direction)}), best single {number(best.scores[found.metric])} ({names[best.label]})"
    )
    if "model_stock" in by_sort and found.kind != "model_stock":
        lines.append(f"Model Stock of all: {found.metric} {number(by_sort['model_stock'].scores[found.metric])}")
    if found.test_metric is not None:
        told = [
            f"{KINDS[one.sort] if one.sort != 'model' else 'best single'} {number(one.tested[found.test_metric])}"
            for one in found.candidates if one.tested
        ]  # fmt: skip
        lines.append(f"tested once, {found.test_metric}: {', '.join(told)}")
    return [*lines, *found.notes]


def _even(weights: Mapping[int, float]) -> bool:
    return len(set(weights.values())) == 1


def sweep_table(found: Sweep) -> Table:
    """One row for each place."""
    metrics = list(found.scores[0])
    table = Table("alpha", *metrics, "", box=SIMPLE, pad_edge=False)
    for column in table.columns[:-1]:
        column.justify = "right"
    for alpha, scores in zip(found.alphas, found.scores, strict=True):
        chosen = "chosen" if alpha == found.best else ""
        table.add_row(f"{alpha:g}", *(number(scores[metric]) for metric in metrics), chosen)
    return table


def sweep_summary(found: Sweep) -> list[str]:
    """The best place against both ends."""
    place = found.alphas.index(found.best)
    values = [scores[found.metric] for scores in found.scores]
    ends = f"{number(values[0])} at {found.alphas[0]:g} and {number(values[-1])} at {found.alphas[-1]:g}"
    return [
        f"best alpha {found.best:g}: {found.metric} {number(values[place])} ({more_is_better(found.direction)}), "
        f"against {ends}"
    ]


def evaluations_table(found: Evaluations) -> Table:
    """One row for each model."""
    names = short_names(found.models)
    metrics = list(found.scores[0])
    return _table(
        ["model", *metrics],
        [
            [names[model], *(number(scores[metric]) for metric in metrics)]
            for model, scores in zip(found.models, found.scores, strict=True)
        ],
    )


def ensembles_table(found: Ensembles) -> Table:
    """One row for each predictor, with what it costs to run."""
    names = short_names(found.models)
    metrics = list(found.predictors[0].scores)
    rows = [
        [
            names.get(one.label, one.label),
            *(number(one.scores[metric]) for metric in metrics),
            str(one.cost),
            "" if one.p is None else f"{one.p:.3g}",
        ]
        for one in found.predictors
    ]
    return _table(["predictor", *metrics, "models run", "p against best single"], rows)


def ensembles_summary(found: Ensembles) -> list[str]:
    """What the ensembles gain, and at which cost."""
    names = short_names(found.models)
    by_sort = {one.sort: one for one in found.predictors}
    if "greedy_ensemble" not in by_sort:
        return [f"one model, {found.examples} examples"]
    greedy = by_sort["greedy_ensemble"]
    members = ", ".join(names[found.models[number_]] for number_ in greedy.members)
    soup = by_sort["uniform"]
    return [
        f"greedy ensemble of {greedy.cost}: {members}; {found.metric} {number(greedy.scores[found.metric])} on "
        f"{found.examples} examples, at {greedy.cost} times the cost of one model",
        f"uniform soup: {found.metric} {number(soup.scores[found.metric])} at the cost of one",
    ]


def cache_table(entries: Sequence[Entry]) -> Table:
    """One row for each kept result, oldest first."""
    rows = [
        [
            one.made[:16].replace("T", " "),
            one.evaluator,
            one.label,
            ", ".join(f"{name} {number(value)}" for name, value in one.values.items()),
            f"{one.seconds:.1f}",
        ]
        for one in entries
    ]
    table = Table("when (UTC)", "evaluator", "of", "scores", "seconds", box=SIMPLE, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def plain_scores(values: Mapping[str, float]) -> dict[str, float | None]:
    """For JSON: what is not finite is null."""
    return {name: plain(value) for name, value in values.items()}


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*headings, box=SIMPLE, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    return table
