"""How an output was made, as files beside it: what ``verify`` reads and a person wants to know."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from stockpot import errors
from stockpot._version import __version__
from stockpot.adapters import Loss, is_adapter
from stockpot.checkpoint import MANIFESTS, Source, hub_ids
from stockpot.engine._plan import Plan
from stockpot.engine._records import Records, summarize

PROVENANCE = "stockpot.json"
RUN = "stockpot_run.json"
RECIPE = "stockpot_recipe.yaml"
CARD = "README.md"
FOUND = ("ratio", "lost", "groups", "tensors")
"""Of the provenance, what only the merge finds out."""


def provenance(plan: Plan, records: Records) -> dict[str, Any]:
    """What made this output, without time or place, so that the same job gives the same bytes."""
    ratio = summarize(records.groups)
    slots = {slot.name: slot for slot in plan.slots}
    settings = (
        {} if plan.job.is_even else {one.name: {"setting": plan.slots[one.slots[0]].setting} for one in plan.groups}
    )
    return {
        **dict(zip(("stockpot", "torch", "device"), versions(plan), strict=True)),
        "recipe": plan.job.recipe.model_dump(mode="json"),
        "inputs": [
            {
                "ref": checkpoint.ref,
                **({"commit": checkpoint.commit} if checkpoint.commit else {}),
                "role": plan.inputs.given.role(number),
                "files": [
                    {"name": Path(file.path).name, "bytes": file.size, "header_xxh3": file.header_digest}
                    for file in checkpoint.files
                ],
            }
            for number, checkpoint in enumerate(plan.inputs.given.checkpoints)
        ],
        "template": plan.template.ref,
        "ratio": ratio.data() if ratio else None,
        "decisions": [{"tensor": d.tensor, "policy": d.policy, "action": d.action} for d in plan.alignment.decisions],
        "files": [
            {"name": file.name, "bytes": file.size, "header_xxh3": xxhash.xxh3_128_hexdigest(file.header)}
            for file in ([] if plan.is_one_file else plan.layout.files)
        ],
        **({} if plan.job.is_even else {"settings": [dict(values) for values in plan.alignment.settings]}),
        **({"made_from": dict(plan.lineage)} if plan.lineage else {}),
        **({"chosen": dict(plan.story.record)} if plan.story is not None else {}),
        **({"vocabulary": dict(found.record)} if (found := plan.inputs.vocabulary) is not None else {}),
        **({"lost": loss.data()} if (loss := rank_loss(plan)) is not None else {}),
        "groups": {name: settings.get(name, {}) | record.data() for name, record in sorted(records.groups.items())},
        "tensors": {
            name: {"dtype": slots[name].dtype, "xxh3": digest} for name, digest in sorted(records.digests.items())
        },
    }


def versions(plan: Plan) -> list[str]:
    """Of stockpot and torch, and the kind of device: what beside recipe and inputs settles the bytes."""
    return [__version__, importlib.metadata.version("torch"), plan.budget.device.split(":")[0]]


def rank_loss(plan: Plan) -> Loss | None:
    """What a smaller rank took away, where adapters were merged."""
    return None if plan.inputs.adapters is None else plan.inputs.adapters.loss()


def as_json(data: Mapping[str, Any]) -> bytes:
    """Deterministic, readable JSON."""
    return (json.dumps(data, indent=1) + "\n").encode()


def run_record(plan: Plan, seconds: float, bytes_read: int, peak_memory: int, started: str) -> dict[str, Any]:
    """Time, host and rates of this run."""
    return {
        "started": started,
        "seconds": round(seconds, 3),
        "host": platform.node(),
        "platform": "-".join((platform.system(), platform.release(), platform.machine())),
        "python": platform.python_version(),
        "workers": plan.budget.workers,
        "memory_bytes": plan.budget.total_bytes,
        "bytes_read": bytes_read,
        "bytes_written": plan.bytes_written,
        "peak_memory_bytes": peak_memory,
        "inputs": [identities(checkpoint) for checkpoint in plan.inputs.given.checkpoints],
    }


def identities(source: Source) -> list[dict[str, Any]]:
    """What tells that the files of an input are still those that were read."""
    return [
        {
            "path": file.path,
            "bytes": file.size,
            "header_xxh3": file.header_digest,
            "mtime_ns": file.mtime_ns,
            "ctime_ns": file.ctime_ns,
            "inode": file.inode,
        }
        for file in source.files
    ]


def _library(template: Source) -> str | None:
    """The library that wrote the template, by the files that only it writes."""
    if is_adapter(template):
        return "peft"
    if template.folder is not None:
        for file, library in MANIFESTS.items():
            if (template.folder / file).is_file():
                return library
    return "transformers" if template.parts[0].config.get("model_type") else None


def fenced(text: str) -> list[str]:
    """Lines of YAML that ends where its fence does, whatever stands in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}yaml", text, fence]


def as_code(text: str) -> str:
    """A name as code in a cell of a Markdown table: one line, which nothing in it ends.

    >>> as_code("models/a"), as_code("a|`b"), as_code("a\\n# b")
    ('`models/a`', '``a\\\\|`b``', '`a\\\\n# b`')
    """
    shown = errors.printable(text).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    gap = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{gap}{shown}{gap}{fence}"


def model_card(plan: Plan, records: Records) -> bytes:
    """``README.md`` of the output: front matter that model hubs read, then how it was made."""
    job = plan.job
    lines = ["---"]
    ids = [ref.partition("@")[0] for c in plan.inputs.given.checkpoints for ref, _ in hub_ids(c.ref, c.commit)]
    if ids:
        lines += [
            "base_model:",
            *(f"- {errors.printable(one)}" for one in dict.fromkeys(ids)),
            "base_model_relation: merge",
        ]
    if library := _library(plan.template):
        lines.append(f"library_name: {library}")
    lines += ["tags:", "- merge", "- stockpot", "---", "", f"# {errors.printable(plan.out.name)}", ""]
    lines.append(f"Merged by stockpot {__version__}, method `{job.method.name}`: {job.method.summary}")
    lines += ["", "| input | role |", "|---|---|"]
    for number, checkpoint in enumerate(plan.inputs.given.checkpoints):
        at = f" at commit {checkpoint.commit}" if checkpoint.commit else ""
        lines.append(f"| {as_code(checkpoint.ref)}{at} | {plan.inputs.given.role(number)} |")
    ratio = summarize(records.groups)
    if ratio:
        lines += [
            "",
            f"Ratio t over {ratio.count} groups: {ratio.min:.3f} to {ratio.max:.3f}, median {ratio.median:.3f}"
            + (f"; {ratio.clamped} clamped to the base." if ratio.clamped else "."),
        ]
    if plan.story is not None:
        lines += ["", *map(errors.printable, plan.story.lines)]
    lines += ["", f"Reference: {job.method.reference}.", "", *fenced(job.recipe.to_yaml().rstrip()), ""]
    return "\n".join(lines).encode("utf-8", "backslashreplace")
