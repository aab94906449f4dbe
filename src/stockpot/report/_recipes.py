"""What a recipe would do, for ``stockpot check``: a table for people, the same as data."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from stockpot.engine import Plan, layer_of
from stockpot.measure import natural_order
from stockpot.report._tables import parameter_lines
from stockpot.report._text import counted, human_bytes

LAYERS_SHOWN = 100
"""Rows of parameters by layer."""
VALUES_SHOWN = 4
"""Different values in one layer."""


def layer_parameters(plan: Plan) -> dict[str, dict[str, list[object]]]:
    """Of each parameter that varies over tensors, its different values by layer; ``other`` are those outside layers."""
    found: dict[str, dict[str, list[object]]] = {}
    varying = plan.job.valued.varying(plan.job.sections)
    for slot in plan.slots:
        if slot.action != "merge":
            continue
        values = plan.values_of(slot)
        layer = layer_of(slot.name) or "other"
        for name in varying:
            seen = found.setdefault(name, {}).setdefault(layer, [])
            if values[name] not in seen:
                seen.append(values[name])
    return {
        name: dict(sorted(by_layer.items(), key=lambda one: (one[0] == "other", natural_order(one[0]))))
        for name, by_layer in found.items()
    }


def check_record(plans: Sequence[Plan]) -> dict[str, object]:
    """All of it as data, the result's merge last."""
    return {
        "merges": [
            {
                "name": plan.job.recipe.name,
                "method": plan.job.method.name,
                "granularity": plan.job.granularity,
                "models": [
                    {"ref": one.ref, "role": plan.inputs.given.role(number), "tensors": len(one.tensors)}
                    for number, one in enumerate(plan.inputs.given.checkpoints)
                ],
                "tensors": len(plan.slots),
                "layers": {stack.prefix.rstrip("."): len(stack.layers) for stack in plan.alignment.stacks},
                "parameters": parameter_lines(plan),
                "by_layer": layer_parameters(plan),
                "bytes_read": plan.bytes_read,
                "bytes_written": plan.bytes_written,
                "bytes_to_download": plan.bytes_to_download,
                "peak_memory_bytes": plan.peak_memory_bytes,
                "decisions": len(plan.alignment.decisions),
            }
            for plan in plans
        ]
    }


def check_table(plan: Plan) -> Table:
    """What one merge would do."""
    table = Table("", plan.job.recipe.name or "result", box=SIMPLE, pad_edge=False)
    granularity = f", granularity {plan.job.granularity}" if plan.job.method.granularity else ""
    table.add_row("method", plan.job.method.name + granularity)
    for number, one in enumerate(plan.inputs.given.checkpoints):
        table.add_row(plan.inputs.given.role(number), f"{one.ref} ({counted(len(one.tensors), 'tensor')})")
    table.add_row("tensors", _by_action(plan))
    for stack in plan.alignment.stacks:
        table.add_row("layers", f"{len(stack.layers)} of {stack.prefix.rstrip('.')}")
    table.add_row("parameters", "; ".join(parameter_lines(plan)) or "none")
    for name, by_layer in layer_parameters(plan).items():
        for layer, values in [*by_layer.items()][:LAYERS_SHOWN]:
            shown = ", ".join(map(str, values[:VALUES_SHOWN])) + (" ..." if len(values) > VALUES_SHOWN else "")
            table.add_row(f"{name} at {layer}", shown)
        if len(by_layer) > LAYERS_SHOWN:
            table.add_row(f"{name}", f"and {len(by_layer) - LAYERS_SHOWN} more layers")
    if plan.bytes_to_download:
        table.add_row("downloads", human_bytes(plan.bytes_to_download))
    table.add_row("reads, writes", f"{human_bytes(plan.bytes_read)}, {human_bytes(plan.bytes_written)}")
    table.add_row("peak memory", human_bytes(plan.peak_memory_bytes))
    return table


def _by_action(plan: Plan) -> str:
    merged = sum(slot.action == "merge" for slot in plan.slots)
    rest = len(plan.slots) - merged
    return f"{len(plan.slots)}" + (f", {rest} of them not merged but copied, compared or averaged" if rest else "")
