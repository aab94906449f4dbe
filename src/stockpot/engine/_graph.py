"""Merges that take one another's results: all planned from headers, then carried out one after the other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stockpot import errors
from stockpot.adapters import open_source
from stockpot.checkpoint import Source, is_local
from stockpot.engine._job import Job, resolve
from stockpot.engine._plan import Plan, make_plan, open_inputs, with_links_told
from stockpot.engine._planned import PlannedSource
from stockpot.engine._records import Records
from stockpot.engine._sinks import GEOMETRY
from stockpot.recipe import Graph, Recipe, document_of

PARTS = ".parts"
"""Beside OUT, the folder of the results that OUT is made of."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@.*)?")


@dataclass(frozen=True)
class Options:
    """How plans are made, beside the recipe."""

    memory: int
    workers: int | None
    device: str
    from_file: bool = True
    lenient: bool = False


def part_of_graph(out: Path, name: str) -> Path:
    """Where the result of a named document is kept.

    >>> str(part_of_graph(Path("out/merged"), "half"))
    'out/merged.parts/half'
    """
    return out.with_name(out.name + PARTS) / name


def plan_graph(graph: Graph, out: Path, options: Options) -> tuple[Plan, ...]:
    """The plan of every merge, the result's last; raises with every problem of all of them at once.

    Nothing is made: where a merge takes another's result, it is planned from what that result's headers will say.
    """
    if graph.problem is not None:
        raise errors.gathered([graph.problem, *_seen_without_a_plan(graph, out, options)])
    plans: list[Plan] = []
    problems: list[errors.StockpotError] = []
    made: dict[str, Source] = {}
    failed: set[str] = set()
    for recipe in graph.recipes:
        where = _place(graph, recipe, out)
        placed = _placed(recipe, graph, out)
        try:
            if failed.isdisjoint(placed.refs):
                plan = _plan(placed, where, options, made, _lineage(plans, placed))
                plans.append(plan)
                made[str(where)] = PlannedSource.of(plan)
                continue
            _resolved(placed, options)  # what it is made of is wrong itself: that was told
        except errors.StockpotError as error:
            problems.append(error)
        failed.add(str(where))
    if problems:
        raise errors.gathered(problems)
    plans[0] = replace(plans[0], warnings=(*graph.warnings, *plans[0].warnings))
    return tuple(plans)


def carry_out(
    plans: Sequence[Plan], options: Options, work: Callable[[Plan, bool], Any], reused: Callable[[Plan], None]
) -> Any:
    """Carry out the plans in order, and return what ``work`` does of the last.

    ``work(plan, is_part)`` writes; a part that is there already, of the same job, is left as it is and told to
    ``reused``.
    """
    *parts, result = plans
    for plan in parts:
        real = _again(plan, options)
        if is_made(real):
            reused(real)
        else:
            work(real, True)
    return work(_again(result, options) if parts else result, False)


def is_made(plan: Plan) -> bool:
    """Whether a plan's output is there, whole, and what the plan would write: recipe, inputs, side files, versions,
    device. Cost: reading it once."""
    from stockpot.engine import _provenance as prov
    from stockpot.engine._verify import verify

    try:
        stated = json.loads((plan.out / prov.PROVENANCE).read_bytes())
        run = json.loads((plan.out / prov.RUN).read_bytes())
        return (
            run["inputs"] == [prov.identities(checkpoint) for checkpoint in plan.inputs.given.checkpoints]
            and _is_stated(plan, stated)
            and _has_its_files(plan, stated)
            and verify(plan.out).problems == ()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, errors.StockpotError):
        return False


def _is_stated(plan: Plan, stated: Mapping[str, Any]) -> bool:
    """Whether a provenance says what the plan's will, but for what only the merge finds out."""
    from stockpot.engine import _provenance as prov

    planned = json.loads(prov.as_json(prov.provenance(plan, Records())))
    return {key: stated[key] for key in stated if key not in prov.FOUND} == {
        key: planned[key] for key in planned if key not in prov.FOUND
    }


def _has_its_files(plan: Plan, stated: Mapping[str, Any]) -> bool:
    """Whether the small files are, by their sums, those that the plan copies and makes."""
    from stockpot.engine import _provenance as prov
    from stockpot.engine._small_files import copied_files, made_files
    from stockpot.engine._sums import SUMS, file_sum, read_sums, sums

    listed, _ = read_sums((plan.out / SUMS).read_bytes())
    records = Records(digests={name: said["xxh3"] for name, said in stated["tensors"].items()})
    made = made_files(plan, records, {})
    for name in (prov.CARD, prov.PROVENANCE):  # of coefficients and digests, which are verified
        del made[name]
    copied = {name: file_sum(path) for name, path in copied_files(plan).items()}
    own = {prov.CARD, prov.PROVENANCE, prov.RUN, GEOMETRY, *([plan.beside.name] if plan.beside is not None else [])}
    wanted, _ = read_sums(sums(made, copied))
    return wanted == {name: digest for name, digest in listed.items() if name not in own}


def _again(plan: Plan, options: Options) -> Plan:
    """The plan with what it takes from others, which is made by now."""
    if not plan.lineage:
        return plan
    found = _plan(plan.job.recipe, plan.out, options, {}, plan.lineage)
    return replace(found, warnings=plan.warnings)


def _place(graph: Graph, recipe: Recipe, out: Path) -> Path:
    return out if recipe is graph.result else part_of_graph(out, recipe.name or "")


def _placed(recipe: Recipe, graph: Graph, out: Path) -> Recipe:
    """The recipe with the places of other documents' results instead of their names."""
    names = {one.name for one in graph.parts}

    def placed(ref: str) -> str:
        name = document_of(ref, names)
        return ref if name is None else str(part_of_graph(out, name)) + ref[len(name) :]

    return recipe.renamed(placed)


def _lineage(plans: Sequence[Plan], recipe: Recipe) -> dict[str, object]:
    """How each result that a recipe takes was made, and those that it was made of, by where they are."""
    found: dict[str, object] = {}
    refs = {ref.partition("+")[0] for ref in recipe.refs} | set(recipe.refs)
    for plan in plans:
        if str(plan.out) in refs:
            found |= plan.lineage
            inputs = plan.inputs.given.checkpoints
            found[str(plan.out)] = {
                "recipe": plan.job.recipe.model_dump(mode="json"),
                "inputs": [
                    {"ref": one.ref, **({"commit": one.commit} if one.commit else {})} for one in inputs
                ],
            }  # fmt: skip
    return found


def _resolved(recipe: Recipe, options: Options) -> Job:
    return resolve(recipe, from_file=options.from_file, lenient=options.lenient)


def _seen_without_a_plan(graph: Graph, out: Path, options: Options) -> Iterator[errors.StockpotError]:
    """What parameters and models on this machine show, of recipes that will not be used."""
    for recipe in graph.recipes:
        placed = _placed(recipe, graph, out)
        try:
            _resolved(placed, options)
        except errors.StockpotError as error:
            yield error
        yield from _not_there(placed, [str(part_of_graph(out, one.name or "")) for one in graph.parts])


def _plan(
    recipe: Recipe, out: Path, options: Options, made: Mapping[str, Source], lineage: Mapping[str, object]
) -> Plan:
    try:
        job = _resolved(recipe, options)
    except errors.StockpotError as error:
        raise errors.gathered([error, *_not_there(recipe, [*made])]) from None
    plan = make_plan(
        job,
        open_inputs(job, made, adapters=True),
        out,
        memory=options.memory,
        workers=options.workers,
        device=options.device,
        lineage=lineage,
    )
    return with_links_told(plan)


def _not_there(recipe: Recipe, made: Sequence[str]) -> list[errors.StockpotError]:
    """Problems of the models on this machine; a model hub is not asked for a recipe that cannot be used."""
    found: list[errors.StockpotError] = []
    for ref in recipe.refs:
        if ref in made or ref.partition("+")[0] in made or (_HUB_ID.fullmatch(ref) and not is_local(ref)):
            continue
        try:
            open_source(ref).close()
        except errors.StockpotError as error:
            found.append(error)
    return found
