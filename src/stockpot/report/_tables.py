"""Tables for the terminal; plain when piped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.box import SIMPLE
from rich.table import Table

from stockpot.engine import Plan, differing_side_files
from stockpot.methods import Method
from stockpot.report._text import counted, human_bytes


def methods_table(methods: Iterable[Method]) -> Table:
    """The catalogue."""
    table = Table("method", "models", "base", "what it does", box=SIMPLE, pad_edge=False)
    for method in methods:
        least, most = method.models
        count = f"{least}+" if most is None else str(least) if least == most else f"{least}-{most}"
        table.add_row(method.name, count, method.base, method.summary)
    return table


def plan_table(plan: Plan) -> Table:
    """What a merge would do."""
    table = Table("", "plan", box=SIMPLE, pad_edge=False, show_header=False)
    record = plan.record()
    job = plan.job
    table.add_row("method", job.method.name + (f", granularity {job.granularity}" if job.method.granularity else ""))
    parameters = ", ".join(f"{name}={value}" for name, value in job.values.items())
    table.add_row("parameters", parameters or "none")
    if job.rank is not None:
        table.add_row("rank", str(job.rank))
    for number, checkpoint in enumerate(plan.inputs.given.checkpoints):
        role = plan.inputs.given.role(number)
        size = sum(info.nbytes for info in checkpoint.tensors.values())
        table.add_row(role, f"{checkpoint.ref} ({counted(len(checkpoint.tensors), 'tensor')}, {human_bytes(size)})")
    table.add_row("template", plan.template.ref)
    held = f"{counted(len(plan.slots), 'tensor')} in {counted(len(plan.layout.files), 'file')}"
    table.add_row("out", f"{plan.out} ({held})")
    dtypes = Counter(slot.dtype for slot in plan.slots)
    table.add_row("dtypes", ", ".join(f"{count} {dtype}" for dtype, count in dtypes.items()))
    table.add_row("reads", f"{human_bytes(plan.bytes_read)} in {plan.passes} pass{'es' if plan.passes > 1 else ''}")
    if plan.bytes_to_download:
        table.add_row("downloads", f"{human_bytes(plan.bytes_to_download)} from the hub, into its cache")
    table.add_row("writes", human_bytes(plan.bytes_written))
    table.add_row("peak memory", f"{human_bytes(plan.peak_memory_bytes)} with {counted(plan.budget.workers, 'worker')}")
    needed, free = record["disk_needed_bytes"], record["disk_free_bytes"]
    assert isinstance(needed, int)
    assert isinstance(free, int)
    table.add_row("disk", f"{human_bytes(needed)} needed, {human_bytes(free)} free")
    decided = Counter((d.policy, d.action) for d in plan.alignment.decisions)
    for (policy, action), count in decided.items():
        names = [d.tensor for d in plan.alignment.decisions if (d.policy, d.action) == (policy, action)]
        shown = ", ".join(names[:3]) + (f" and {count - 3} more" if count > 3 else "")
        table.add_row(f"{policy}: {action}", shown)
    vocabulary = plan.inputs.vocabulary
    differing = differing_side_files(plan.template, plan.inputs.checkpoints)
    if differing := [name for name in differing if vocabulary is None or not vocabulary.is_replaced(name)]:
        table.add_row("differ between inputs", ", ".join(differing) + ": the template's are taken")
    return table
