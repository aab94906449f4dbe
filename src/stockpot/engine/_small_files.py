"""What lies beside the weights in a folder that was merged: the merge writes it, ``verify --recompute`` derives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stockpot.checkpoint import CONFIG, by_part
from stockpot.engine import _provenance as prov
from stockpot.engine._align import Slot
from stockpot.engine._plan import Group, Plan
from stockpot.engine._records import Records
from stockpot.engine._side_files import adapted_config, side_files

GENERATION = "generation_config.json"


def record_adapters(plan: Plan, records: Records) -> None:
    """The coefficients of merged adapters, which no group of tensors has."""
    if (merged := plan.inputs.adapters) is not None:
        for group, mixture in merged.mixtures().items():
            records.add(Group(group, ()), mixture)


def copied_files(plan: Plan) -> dict[str, Path]:
    """Side files of the template that come along as they are."""
    own = {part.prefix + CONFIG for part in plan.template.parts} | set(_of_adapters(plan))
    found = {name: path for name, path in side_files(plan.template).items() if name not in own}
    if (vocabulary := plan.inputs.vocabulary) is None:
        return found
    kept = {name: path for name, path in found.items() if not vocabulary.is_replaced(name)}
    renumbered = _renumbered(plan, found)
    return {name: path for name, path in kept.items() if name not in renumbered} | vocabulary.copied()


def made_files(plan: Plan, records: Records, content: Mapping[str, Any]) -> dict[str, bytes]:
    """Configurations, indexes, recipe, card and provenance: all that follows from the plan and its records."""
    beside, made = side_files(plan.template), _of_adapters(plan)
    for part, own in by_part(plan.slots, plan.template.parts):
        if (name := part.prefix + CONFIG) in beside:
            made[name] = _config(plan, records, own, beside[name].read_bytes())
    if (vocabulary := plan.inputs.vocabulary) is not None:
        made |= vocabulary.made(beside) | _renumbered(plan, beside)
    made.update(plan.layout.indexes)
    made[prov.RECIPE] = plan.job.recipe.to_yaml().encode("utf-8", "backslashreplace")
    made[prov.CARD] = prov.model_card(plan, records)
    made[prov.PROVENANCE] = prov.as_json(content)
    return made


def _renumbered(plan: Plan, beside: Mapping[str, Path]) -> dict[str, bytes]:
    """What generation starts and stops with, where its tokens have other numbers in the output."""
    vocabulary = plan.inputs.vocabulary
    if vocabulary is None or GENERATION not in beside:
        return {}
    content = beside[GENERATION].read_bytes()
    new = vocabulary.config(plan.alignment.template, content)
    return {GENERATION: new} if new != content else {}


def _of_adapters(plan: Plan) -> dict[str, bytes]:
    return dict(plan.inputs.adapters.own_files) if plan.inputs.adapters is not None else {}


def _config(plan: Plan, records: Records, own: Sequence[Slot], content: bytes) -> bytes:
    dtypes = {slot.dtype for slot in own if slot.action == "merge"}
    # Where both came out the same, tying them loses nothing; a library that does not may look for more than these two.
    digests = records.digests
    untied = {name for name, other in plan.alignment.untied.items() if digests.get(name) != digests.get(other)}
    if (vocabulary := plan.inputs.vocabulary) is not None:
        content = vocabulary.config(plan.alignment.template, content)
    return adapted_config(content, dtypes, any(slot.name in untied for slot in own))
