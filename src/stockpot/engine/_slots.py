"""What becomes of one tensor of the output: merged, mixed, copied, or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from stockpot import errors
from stockpot.adapters import AdapterSum
from stockpot.checkpoint import EMBEDDINGS, HEADS, Source, TensorInfo, is_mergeable, widest
from stockpot.engine._job import Job
from stockpot.methods import Statistic

if TYPE_CHECKING:
    from stockpot.vocabulary import Vocabulary

View = Mapping[str, TensorInfo]
Action = Literal["merge", "mix", "same"]
_PIECE = 1 << 20
_COUNTERS = ("I64", "I32", "I16", "U64", "U32")
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy or rule that made a tensor something other than merged."""

    tensor: str
    policy: str
    action: str


@dataclass(frozen=True, slots=True)
class SlotStatistic:
    """Where the values of a model's tensor are, and what is said of them."""

    source: tuple[int, TensorInfo]
    streamed: bool
    about: Statistic


@dataclass(frozen=True, slots=True)
class Slot:
    """One output tensor and where it comes from.

    ``action``: ``merge`` by the method; ``mix`` with the fixed ``weights``; ``same``: copied from the first source
    after all were found equal. ``sources``: (input number, place), reference first.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    action: Action
    sources: tuple[tuple[int, TensorInfo], ...]
    weights: tuple[float, ...] | None = None
    checked: bool = True
    """Whether NaN and Inf in it are refused; not where the user left the tensor out of the merge."""
    setting: int = 0
    """Which of the alignment's ``settings`` are its method's parameters."""
    statistics: tuple[SlotStatistic, ...] = ()
    """What data say of the tensor, one for each model; those that are streamed stand behind ``sources`` too."""

    @property
    def models(self) -> int:
        """How many of its sources are checkpoints, the base among them."""
        return len(self.sources) - sum(one.streamed for one in self.statistics)


@dataclass(frozen=True)
class Inputs:
    """The opened checkpoints: ``checkpoints[0]`` is the base where there is one, then the models in order, then the
    files of ``statistics``, as many as it says."""

    checkpoints: tuple[Source, ...]
    has_base: bool
    adapters: AdapterSum | None = None
    """Where adapters are merged: what they become, the one checkpoint."""
    originals: Inputs | None = None
    """Where adapters are merged: they themselves."""
    vocabulary: Vocabulary | None = None
    """Where a recipe speaks of tokenizers or chat templates: what comes of it."""
    statistics: int = 0

    @property
    def merged(self) -> Inputs:
        """Without the statistics."""
        return replace(self, checkpoints=self.checkpoints[: len(self.checkpoints) - self.statistics], statistics=0)

    @property
    def given(self) -> Inputs:
        """What the user gave."""
        return self.originals or self

    def role(self, number: int) -> str:
        """base, model or statistics."""
        if number >= len(self.checkpoints) - self.statistics:
            return "statistics"
        return "base" if self.has_base and number == 0 else "model"

    @property
    def first_model(self) -> int:
        """Number of the first model."""
        return 1 if self.has_base else 0

    @property
    def models(self) -> range:
        """Numbers of the models."""
        return range(self.first_model, len(self.checkpoints) - self.statistics)


def slot_of(
    job: Job,
    inputs: Inputs,
    views: Sequence[View],
    name: str,
    decisions: list[Decision],
    missing: dict[str, list[int]],
) -> Slot | None:
    """The tensor of that name; None where it is missing, which is then noted, or dropped."""
    having = [number for number in inputs.models if name in views[number]]
    needed = [*([0] if job.anchored else []), *inputs.models]
    lacking = [number for number in needed if name not in views[number]]
    if lacking:
        return _missing(job, inputs, views, name, having, lacking, decisions, missing)
    infos = {number: views[number][name] for number in needed}
    first = infos[inputs.first_model]
    of_models = {number: infos[number] for number in inputs.models}
    if name.rsplit(".", 1)[-1] in _STATISTICS and all(is_mergeable(info.dtype) for info in of_models.values()):
        _require_shapes(job, inputs, name, of_models)
        decisions.append(Decision(name, "statistics", "mean"))
        return _mean(job, name, list(of_models.items()))
    if not all(is_mergeable(info.dtype) for info in infos.values()):
        return _unmergeable(job, inputs, name, infos, decisions)
    try:
        _require_shapes(job, inputs, name, infos)
    except errors.MismatchError:
        policy = job.recipe.policies.mismatch
        if policy == "error":
            raise
        return _taken(job, inputs, name, infos, "mismatch", policy, decisions)
    dtype = job.dtype or _agreed([infos[number].output_dtype for number in inputs.models])
    return Slot(name, first.shape, dtype, "merge", tuple((number, infos[number]) for number in needed))


def _agreed(dtypes: Sequence[str]) -> str:
    return dtypes[0] if len(set(dtypes)) == 1 else widest(dtypes)


def _mean(job: Job, name: str, sources: Sequence[tuple[int, TensorInfo]]) -> Slot:
    dtype = job.dtype or _agreed([info.output_dtype for _, info in sources])
    weights = (1.0 / len(sources),) * len(sources)
    return Slot(name, sources[0][1].shape, dtype, "mix", tuple(sources), weights)


def _missing(
    job: Job,
    inputs: Inputs,
    views: Sequence[View],
    name: str,
    having: Sequence[int],
    lacking: Sequence[int],
    decisions: list[Decision],
    missing: dict[str, list[int]],
) -> Slot | None:
    policy = job.recipe.policies.missing
    in_base = inputs.has_base and name in views[0]
    if policy == "error" or (policy == "base" and not in_base):
        missing[name] = list(lacking)
        return None
    if policy == "base":
        return _taken(job, inputs, name, {0: views[0][name]}, "missing", "base", decisions)
    if not having:
        decisions.append(Decision(name, "missing", "dropped: only the base has it"))
        return None
    infos = {number: views[number][name] for number in having}
    if policy == "first" or not all(is_mergeable(info.dtype) for info in infos.values()):
        return _taken(job, inputs, name, infos, "missing", "first", decisions)
    _require_shapes(job, inputs, name, infos)
    decisions.append(Decision(name, "missing", f"average of {len(having)}"))
    return _mean(job, name, list(infos.items()))


def _taken(
    job: Job,
    inputs: Inputs,
    name: str,
    infos: Mapping[int, TensorInfo],
    policy: str,
    who: str,
    decisions: list[Decision],
) -> Slot:
    """One input's tensor, unmerged (still converted where a dtype was asked for)."""
    if who == "base" and not (inputs.has_base and 0 in infos):
        raise errors.MismatchError(
            "the base has no such tensor to fall back on", tensor=name, remedy=f"--{policy} first"
        )
    number = 0 if who == "base" else next(n for n in inputs.models if n in infos)
    info = infos[number]
    decisions.append(Decision(name, policy, who))
    dtype = job.dtype if job.dtype and is_mergeable(info.dtype) else info.output_dtype
    return Slot(name, info.shape, dtype, "mix", ((number, info),), (1.0,))


def _unmergeable(
    job: Job, inputs: Inputs, name: str, infos: Mapping[int, TensorInfo], decisions: list[Decision]
) -> Slot:
    """Integers, bools, FP8, packed: equal over the models, or refused; a 0-d counter is the first model's."""
    of_models = [(number, infos[number]) for number in inputs.models]
    number, info = of_models[0]
    if all(other.shape == () and other.dtype in _COUNTERS for _, other in of_models):
        decisions.append(Decision(name, "counter", "first"))
        return Slot(name, info.shape, info.dtype, "mix", ((number, info),), (1.0,))
    policy = job.recipe.policies.mismatch
    if policy != "error" and not _values_equal(inputs, of_models):
        return _taken(job, inputs, name, infos, "mismatch", policy, decisions)
    if any(other.dtype != info.dtype for _, other in of_models):
        raise errors.MismatchError(
            "dtypes that cannot be merged differ", tensor=name, expected=info.dtype,
            got=", ".join(other.dtype for _, other in of_models), remedy="--mismatch first, or --exclude it",
        )  # fmt: skip
    _require_shapes(job, inputs, name, dict(of_models))
    return Slot(name, info.shape, info.dtype, "same", tuple(of_models))


def _values_equal(inputs: Inputs, sources: Sequence[tuple[int, TensorInfo]]) -> bool:
    """Whether all sources hold the same bytes in the same form. The one place where planning reads data."""
    (first, kept), *others = sources
    buffers = [memoryview(bytearray(min(kept.nbytes, _PIECE))) for _ in range(2)]
    for number, info in others:
        if (info.dtype, info.shape, info.strides, info.nbytes) != (kept.dtype, kept.shape, kept.strides, kept.nbytes):
            return False
        for start in range(0, kept.nbytes, _PIECE):
            left, right = (buffer[: min(_PIECE, kept.nbytes - start)] for buffer in buffers)
            inputs.checkpoints[first].read_into(kept, start, left)
            inputs.checkpoints[number].read_into(info, start, right)
            if left != right:
                return False
    return True


def source_path(inputs: Inputs, number: int, info: TensorInfo) -> str:
    """Where a tensor lies: its file, or what the input is called."""
    checkpoint = inputs.checkpoints[number]
    return checkpoint.files[info.file].path if checkpoint.files else checkpoint.ref


def _require_shapes(job: Job, inputs: Inputs, name: str, infos: Mapping[int, TensorInfo]) -> None:
    first = next(iter(infos))
    for number, info in infos.items():
        kept = infos[first].shape
        if info.shape == kept:
            continue
        is_vocabulary = name.endswith((*HEADS, *EMBEDDINGS)) and info.shape[1:] == kept[1:]
        raise errors.MismatchError(
            "vocabularies of different sizes" if is_vocabulary else "shapes differ",
            tensor=name,
            file=source_path(inputs, number, info),
            expected=f"{list(kept)} as in {inputs.checkpoints[first].ref}",
            got=f"{list(info.shape)}",
            remedy="a recipe with tokenizer_source (union, base or a model) brings them to one; "
            "--mismatch first takes the first model's, with its tokenizer, unmerged; --mismatch base the base's"
            if is_vocabulary
            else "--mismatch base|first takes it unmerged, --exclude leaves it as the template has it",
        )
