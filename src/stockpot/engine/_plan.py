"""Recipe -> plan: everything decided, nothing read but headers. A plan is data; it can be printed, and split later."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import xxhash

from stockpot import errors
from stockpot._version import __version__
from stockpot.adapters import adapted, open_source, read_adapter
from stockpot.checkpoint import CONFIG, Layout, OutFile, Source, nbytes, plan_layout, together
from stockpot.engine._adapters import alignment_of, as_adapters, require_models
from stockpot.engine._align import Alignment, Inputs, Slot
from stockpot.engine._beside import beside
from stockpot.engine._budget import ALIGNMENT, Budget, fit, row_scratch_bytes
from stockpot.engine._job import Job
from stockpot.engine._side_files import links_elsewhere, side_files
from stockpot.engine._statistics import aligned, statistics_bytes, with_statistics
from stockpot.engine._vocabulary import in_one_vocabulary, with_rows_told, without_tokenizer
from stockpot.engine._watch import grouping
from stockpot.kernels import is_compiled

PROCESS_BYTES = 80_000_000
"""What the interpreter takes beside our buffers, as measured on Linux."""
TORCH_BYTES = 340_000_000
"""What torch takes where it is loaded: at most 310 MB measured with a CPU build, which differs by machine."""
LINKS_SHOWN = 10


@dataclass(frozen=True)
class Group:
    """Tensors that share one set of coefficients; ``rows`` > 0: one set for each row of its only tensor."""

    name: str
    slots: tuple[int, ...]
    rows: int = 0


@dataclass(frozen=True)
class Story:
    """How the mixture was chosen, told beside how it was made: ``record`` for programs, ``lines`` for people."""

    record: Mapping[str, object]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A merge, fully decided."""

    job: Job
    inputs: Inputs
    alignment: Alignment
    groups: tuple[Group, ...]
    layout: Layout
    budget: Budget
    out: Path
    passes: int
    bytes_read: int
    warnings: tuple[str, ...]
    story: Story | None = None
    beside: OutFile | None = None
    """What the method writes beside the weights."""
    lineage: Mapping[str, object] = field(default_factory=dict)
    """How inputs that were made for this merge were made, by where they are."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The output's tensors."""
        return self.alignment.slots

    def values_of(self, slot: Slot) -> Mapping[str, object]:
        """The parameters that a tensor is merged by."""
        return self.alignment.settings[slot.setting]

    @property
    def template(self) -> Source:
        """The input whose names, files and side files the output takes."""
        return self.inputs.checkpoints[self.alignment.template]

    @property
    def bytes_written(self) -> int:
        """Bytes of the weight files."""
        return self.layout.total_bytes

    @property
    def bytes_to_download(self) -> int:
        """Bytes of weights, and of the template's side files, that are on a model hub and not yet in its cache."""
        template = self.alignment.template
        found = (source.downloads(side_files=n == template) for n, source in enumerate(self.inputs.checkpoints))
        return sum(together(found).values())

    @property
    def peak_memory_bytes(self) -> int:
        """Foreseen peak of the process."""
        needs_torch = self.is_pickled or self.budget.device != "cpu" or not is_compiled()
        merging = self.budget.total_bytes + self._working_bytes
        planning = self.inputs.vocabulary.reading_bytes if self.inputs.vocabulary is not None else 0
        return PROCESS_BYTES + TORCH_BYTES * needs_torch + max(merging, planning)

    @property
    def _working_bytes(self) -> int:
        """What sources keep, and strided tensors gathered whole: window and result, of two that follow one another."""
        sizes = [sum(i.nbytes + i.size_bytes for _, i in slot.sources if i.strides is not None) for slot in self.slots]
        working = sum(source.working_bytes for source in self.inputs.checkpoints)
        working += row_scratch_bytes(self.job, self.slots, self.alignment.settings, self.budget)
        return 2 * max(sizes, default=0) + working + self.budget.workers * statistics_bytes(self.slots)

    @property
    def key(self) -> str:
        """Digest of all that makes this the same job: recipe, inputs, output form, versions; not workers or memory."""
        import importlib.metadata

        content = {
            "recipe": self.job.recipe.model_dump(mode="json"),
            "inputs": [
                [(file.path, file.header_digest, file.size, file.mtime_ns, file.inode) for file in checkpoint.files]
                for checkpoint in self.inputs.checkpoints
            ],
            "files": [(file.name, file.size) for file in self.layout.files],
            "one_file": self.is_one_file,
            **({"vocabulary": found.digest} if (found := self.inputs.vocabulary) is not None else {}),
            "device": self.budget.device.split(":")[0],
            "versions": [__version__, importlib.metadata.version("torch")],
        }
        return str(xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode()))

    @property
    def is_one_file(self) -> bool:
        """Whether OUT is a single file."""
        return is_one_file(self.out)

    @property
    def is_pickled(self) -> bool:
        """Whether OUT is an archive of ``torch.save``."""
        return self.out.suffix == ".pt"

    @property
    def specs(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Name, dtype and shape of every output tensor."""
        return [(slot.name, slot.dtype, slot.shape) for slot in self.slots]

    def record(self) -> dict[str, object]:
        """The plan as data, for ``--dry-run --json``."""
        return {
            "method": self.job.method.name,
            "out": str(self.out),
            "template": self.template.ref,
            "granularity": self.job.granularity if self.job.method.granularity else None,
            "tensors": len(self.slots),
            "passes": self.passes,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "bytes_to_download": self.bytes_to_download,
            "peak_memory_bytes": self.peak_memory_bytes,
            "disk_needed_bytes": disk_needed(self),
            "disk_free_bytes": disk_free(self.out),
            "files": [{"name": file.name, "bytes": file.size} for file in self.layout.files],
            "decisions": [
                {"tensor": d.tensor, "policy": d.policy, "action": d.action} for d in self.alignment.decisions
            ],
        }


def is_one_file(out: Path) -> bool:
    """OUT with these endings is one file; anything else is a folder."""
    return out.suffix in (".safetensors", ".pt")


def open_inputs(job: Job, opened: Mapping[str, Source] | None = None, *, adapters: bool = False) -> Inputs:
    """Open every checkpoint of a job by its headers; those that are ``opened`` already are taken.

    ``adapters``: LoRA adapters may be merged with one another; else they are refused as models.
    """
    refs = [*([job.base] if job.base is not None else []), *job.models]
    sources = _opened(refs, opened or {})
    found = Inputs(sources, job.base is not None)
    models = sources[found.first_model :]
    if not adapters:
        require_models(sources)
    elif (merged := as_adapters(job, sources[0] if found.has_base else None, models)) is not None:
        return Inputs((merged,), False, merged, found)
    return with_statistics(job, found)


def _opened(refs: Sequence[str], known: Mapping[str, Source]) -> tuple[Source, ...]:
    """All of them; what cannot be opened is told at once."""
    problems: dict[str, errors.StockpotError] = {}
    found: list[Source] = []
    for ref in refs:
        try:
            found.append(known.get(ref) or _with_adapter(ref, known) or open_source(ref))
        except errors.CheckpointError as error:
            problems.setdefault(ref, error)
    if problems:
        raise errors.gathered([*problems.values()])
    return tuple(found)


def _with_adapter(ref: str, known: Mapping[str, Source]) -> Source | None:
    """A known source with an adapter on it: ``KNOWN+ADAPTER``."""
    base, plus, adapter = ref.rpartition("+")
    if not plus or base not in known:
        return None
    return adapted(ref, known[base], read_adapter(open_source(adapter)))


def make_plan(
    job: Job,
    inputs: Inputs,
    out: Path,
    *,
    memory: int,
    workers: int | None,
    device: str = "cpu",
    story: Story | None = None,
    lineage: Mapping[str, object] | None = None,
) -> Plan:
    """Decide everything about a merge from headers; raises InputError kinds. Cost: linear in the tensor count."""
    inputs = in_one_vocabulary(job, inputs)
    alignment = aligned(job, inputs) if inputs.adapters is None else alignment_of(job, inputs)
    alignment = with_rows_told(inputs, alignment)
    slots = alignment.slots
    if not slots:
        raise errors.AlignmentError("there is nothing to write: no tensor is common", remedy="check the inputs")
    groups = make_groups(job, slots)
    if job.table is not None:
        _check_table(job.table, [group.name for group in groups])
    further = beside(job, alignment.settings, [slots[number] for group in groups for number in group.slots])
    here = "cpu" if job.method.is_elementwise else device
    budget = fit(job, slots, alignment.settings, memory=memory, workers=workers, device=here)
    one_file = is_one_file(out)
    if one_file and inputs.adapters is not None:
        raise errors.OutputError(
            "an adapter needs its configuration beside it", file=str(out), remedy="name a folder as --out"
        )
    if one_file and further is not None:
        raise errors.OutputError(
            f"{job.method.name} writes a file beside the model", file=str(out), remedy="name a folder as --out"
        )
    template = inputs.checkpoints[alignment.template]
    layout = plan_layout(
        [(slot.name, slot.dtype, slot.shape) for slot in slots],
        template,
        shard_bytes=job.shard_bytes,
        single_file=one_file,
        pickled=out.suffix == ".pt",
        aliases=alignment.aliases,
        reserve=provenance_reserve(job, inputs, alignment, story, lineage or {}) if one_file else 0,
    )
    once, twice = _bytes_read(job, slots, groups, budget)
    return Plan(
        job,
        inputs,
        alignment,
        groups,
        layout,
        budget,
        out,
        job.method.passes if job.method.is_elementwise else 2 if job.method.uses_gram and twice else 1,
        once + 2 * twice,
        (
            *job.warnings,
            *([] if here == device else [f"{job.method.name} computes on the CPU, not on {device}"]),
            *dict.fromkeys(note for source in inputs.checkpoints for note in source.notes),
            *alignment.notes,
            *(without_tokenizer(inputs) if one_file else _lost_configuration(inputs, alignment)),
        ),
        story,
        further,
        lineage or {},
    )


def with_links_told(plan: Plan) -> Plan:
    """The plan, with a warning where it copies side files that are links to what nobody named."""
    copied = {} if plan.is_one_file else side_files(plan.template)
    folders = [source.folder for source in plan.inputs.given.checkpoints if source.folder is not None]
    if (vocabulary := plan.inputs.vocabulary) is not None and not plan.is_one_file:
        copied = {name: path for name, path in copied.items() if not vocabulary.is_replaced(name)}
        copied |= vocabulary.copied()
        folders += [path.parent for path in vocabulary.copied().values()]
    links = links_elsewhere(copied, folders)
    if not links:
        return plan
    shown = ", ".join(f"{name} -> {end}" for name, end in [*links.items()][:LINKS_SHOWN])
    more = f" and {len(links) - LINKS_SHOWN} more" if len(links) > LINKS_SHOWN else ""
    told = f"side files that are links to elsewhere, and are copied: {shown}{more}"
    return replace(plan, warnings=(*plan.warnings, told))


def _lost_configuration(inputs: Inputs, alignment: Alignment) -> list[str]:
    """Said where the template has no configuration and another model has."""
    template = inputs.checkpoints[alignment.template]
    if template.parts[0].config or (template.folder is not None and (template.folder / CONFIG).exists()):
        return []
    having = [number for number in inputs.models if inputs.checkpoints[number].parts[0].config]
    return [
        f"the template has no {CONFIG}: --template {number - inputs.first_model + 1} has one" for number in having[:1]
    ]


def _check_table(table: Mapping[str, tuple[float, ...]], names: Sequence[str]) -> None:
    """Every merged tensor has its weights, and every weight its tensor."""
    if lacking := [name for name in names if name not in table]:
        raise errors.RecipeError("a merged tensor has no tensor_weights", tensor=lacking[0], problems=lacking[1:])
    if strange := sorted(set(table) - set(names)):
        raise errors.RecipeError(
            "tensor_weights for what is not merged", tensor=strange[0], problems=strange[1:], remedy="take them out"
        )


def provenance_reserve(
    job: Job, inputs: Inputs, alignment: Alignment, story: Story | None, lineage: Mapping[str, object]
) -> int:
    """Header bytes that hold the provenance of a one-file output, bounded from above before it is known.

    The provenance is JSON within JSON: a character outside ASCII takes seven bytes, a quote or backslash up to four.
    """
    words = [slot.name for slot in alignment.slots for _ in range(2)]
    words += [decision.tensor + decision.policy + decision.action for decision in alignment.decisions]
    words += [
        source.ref + source.commit + "".join(Path(file.path).name for file in source.files)
        for source in inputs.checkpoints
    ]
    text = sum(len(json.dumps(json.dumps(word))) for word in words)
    most = max((len(slot.sources) for slot in alignment.slots), default=0)
    numbers = len(alignment.slots) * (420 + 60 * max(len(job.models) + 1, most)) + 100 * len(alignment.decisions)
    numbers += 4 * len(json.dumps(json.dumps(alignment.settings)))
    files = 200 * sum(len(source.files) + 1 for source in inputs.checkpoints)
    told = 4 * len(json.dumps(json.dumps(story.record))) if story is not None else 0
    told += 4 * len(json.dumps(json.dumps(lineage)))
    return 20_000 + told + 4 * len(json.dumps(job.recipe.model_dump_json())) + text + numbers + files


def make_groups(job: Job, slots: Sequence[Slot]) -> tuple[Group, ...]:
    """Groups of merged tensors, in the order of their first tensor; members by name, so that sums keep their order."""
    found: dict[str, list[int]] = {}
    group = grouping(job)
    for number, slot in enumerate(slots):
        if slot.action == "merge" and nbytes(slot.dtype, slot.shape):
            found.setdefault(group(slot.name), []).append(number)
    for name, members in found.items():
        _require_alike(name, [slots[number] for number in members])
    return tuple(
        Group(
            name,
            tuple(sorted(members, key=lambda number: slots[number].name)),
            row_count(slots[members[0]]) if job.granularity == "row" else 0,
        )
        for name, members in found.items()
    )


def _require_alike(name: str, members: Sequence[Slot]) -> None:
    """Tensors that share coefficients are of the same inputs, by the same parameters."""
    first = members[0]
    inputs = [number for number, _ in first.sources]
    for other in members[1:]:
        if other.setting != first.setting or [number for number, _ in other.sources] != inputs:
            raise errors.RecipeError(
                f"the group {name} would mix tensors of different parameters or sources", tensor=first.name,
                got=f"{other.name} beside it", remedy="choose granularity tensor, or the same for both",
            )  # fmt: skip


def row_count(slot: Slot) -> int:
    """Rows of a tensor: dim 0; a 0-d or 1-D tensor is one row."""
    return slot.shape[0] if len(slot.shape) > 1 else 1


def _bytes_read(job: Job, slots: Sequence[Slot], groups: Sequence[Group], budget: Budget) -> tuple[int, int]:
    """(bytes read once, bytes read twice); of element-wise methods as often as they do as a rule, counted as once."""
    alone = {group.slots[0] for group in groups if len(group.slots) == 1}
    by_rows = {group.slots[0] for group in groups if group.rows}
    once = twice = 0
    for number, slot in enumerate(slots):
        size = sum(info.moved_bytes for _, info in slot.sources)
        fits = number in by_rows or (number in alone and held_bytes(slot) <= budget.raw_bytes)
        if slot.action == "merge" and job.method.uses_gram and not fits:
            twice += size
        else:
            once += size * (job.method.passes if slot.action == "merge" else 1)
    return once, twice


def held_bytes(slot: Slot) -> int:
    """Buffer bytes to hold a tensor of all its inputs, so that it is read once."""
    return sum(info.size_bytes + ALIGNMENT for _, info in slot.sources)


def disk_needed(plan: Plan) -> int:
    """Bytes that must be free: the weights, what else is written, and a margin."""
    side = 0 if plan.is_one_file else sum(path.stat().st_size for path in side_files(plan.template).values())
    most = max(len(slot.sources) for slot in plan.slots)
    grams = 8 * sum(max(group.rows, 1) for group in plan.groups) * (max(len(plan.job.models) + 1, most) + 1) ** 2 // 2
    records = 600 * len(plan.slots) + (plan.beside.size if plan.beside is not None else 0)
    return plan.bytes_written + side + (grams if plan.job.method.uses_gram else 0) + records + (1 << 20)


def disk_free(out: Path) -> int:
    """Bytes free where OUT will be."""
    place = out.absolute().parent
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize
