"""The public verbs: thin calls into the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockpot import engine, errors
from stockpot.adapters import open_source
from stockpot.checkpoint import Source
from stockpot.recipe import Graph, Mismatch, Missing, Recipe, Ref, build_recipe, parse_size

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_MEMORY = "192MiB"


def open_checkpoint(ref: Ref) -> Source:
    """Open a checkpoint by its headers alone: named tensors that can be read by range.

    ``ref``: a folder (of the Hugging Face layout, sharded or not; of ``torch.distributed.checkpoint``; of diffusers or
    sentence-transformers), a ``.safetensors`` file, a pickled state dict, a Hub id ``name/name[@revision]``, or two of
    these joined by ``+``: a base and a LoRA adapter on it. An existing path wins. Returns a source: ``tensors`` maps
    names to places, ``read_into`` fills memory with a tensor's range. Raises CheckpointError kinds. Cost: the headers.

    >>> import tempfile, torch, safetensors.torch, stockpot
    >>> folder = tempfile.mkdtemp()
    >>> safetensors.torch.save_file({"w": torch.zeros(2, 3)}, folder + "/model.safetensors")
    >>> stockpot.open_checkpoint(folder).tensors["w"].shape
    (2, 3)
    """
    return open_source(ref)


def plan(
    recipe: Recipe | str | Path,
    *,
    out: Ref,
    memory: str | int = DEFAULT_MEMORY,
    workers: int | None = None,
    device: str = "cpu",
    lenient: bool = False,
) -> engine.Plan:
    """Decide everything about a merge from the headers of its inputs; nothing is written.

    Arguments: ``recipe``, a Recipe or the path of one; ``out``, where the result would go; ``memory``, the bound on
    our buffers; ``workers``, threads (default: the cores, at most 8); ``device``: cpu, cuda, cuda:N or auto;
    ``lenient``: what nobody knows in a recipe is left out with a warning, instead of refused.
    Returns the frozen plan, of a file of several documents that of its result. Raises InputError kinds: everything that
    headers can tell is told here, all of it at once.
    Cost: headers only, linear in the number of tensors; torch is not loaded.
    """
    graph, options = _read(recipe, memory=memory, workers=workers, device=device, lenient=lenient)
    return engine.plan_graph(graph, Path(out).expanduser(), options)[-1]


def _read(
    recipe: Recipe | str | Path, *, memory: str | int, workers: int | None, device: str, lenient: bool
) -> tuple[Graph, engine.Options]:
    """A recipe, or the documents of a file; a file is held to what the field's recipes must state."""
    is_file = not isinstance(recipe, Recipe)
    graph = Graph((recipe,)) if isinstance(recipe, Recipe) else Graph.from_file(recipe, lenient=lenient)
    return graph, make_options(memory=memory, workers=workers, device=device, from_file=is_file, lenient=lenient)


def make_options(
    *, memory: str | int, workers: int | None, device: str, from_file: bool, lenient: bool = False
) -> engine.Options:
    """How plans are made: the words of a call as numbers."""
    return engine.Options(parse_size(memory), workers, engine.choose_device(device), from_file, lenient)


def merge(
    method: str | Recipe | Path,
    *,
    base: Ref | None = None,
    models: Sequence[Ref] = (),
    out: Ref,
    parameters: Mapping[str, Any] | None = None,
    granularity: str | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    memory: str | int = DEFAULT_MEMORY,
    workers: int | None = None,
    shard_size: str | int | None = None,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rename: Sequence[str] = (),
    missing: Missing = "error",
    mismatch: Mismatch = "error",
    template: str | None = None,
    allow_nonfinite: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    resume: bool = True,
    lenient: bool = False,
    progress: engine.Progress | None = None,
) -> engine.MergeResult:
    """Merge checkpoints on disk into a new one.

    Arguments: ``method``, the name of a method (``stockpot methods`` lists them), or a Recipe, or the path of a recipe
    file (then only ``out``, ``device``, ``memory``, ``workers``, ``overwrite``, ``resume``, ``lenient`` and
    ``progress`` may be given; the results of its other documents are kept in ``OUT.parts``);
    ``base`` and ``models``: folders, files or Hub ids; ``out``: a folder, or one ``.safetensors`` or ``.pt``
    file; ``parameters`` of the method, a list for one value per model; the rest as on the command line.
    Returns a MergeResult. Raises InputError kinds before anything is written, RunError kinds if it broke midway (the
    same call then goes on from there). Cost: each input is read once (twice where a tensor of all inputs does not fit
    the memory budget), the output is written once; memory is the budget plus about 60 MB (330 MB
    more where torch is loaded: state dicts, ``.pt`` outputs, GPUs).

    >>> import tempfile, torch, safetensors.torch, stockpot
    >>> folder = tempfile.mkdtemp()
    >>> for name, value in {"base": 0.0, "a": 1.0, "b": 3.0}.items():
    ...     safetensors.torch.save_file({"w": torch.full((2,), value)}, f"{folder}/{name}.safetensors")
    >>> files = [f"{folder}/{name}.safetensors" for name in ("a", "b")]
    >>> result = stockpot.merge("linear", models=files, out=f"{folder}/out.safetensors")
    >>> safetensors.torch.load_file(result.out)["w"]
    tensor([2., 2.])
    """
    recipe: Recipe | Path
    if isinstance(method, Recipe) or _is_recipe_file(method):
        given = {"base": base, "granularity": granularity, "dtype": dtype, "template": template}
        if models or parameters or any(value is not None for value in given.values()):
            raise errors.UsageError("a recipe says all of it", remedy="change the recipe, or give a method's name")
        recipe = method if isinstance(method, Recipe) else Path(method)
    else:
        recipe = build_recipe(
            str(method),
            base=base,
            models=models,
            parameters=parameters,
            granularity=granularity,
            dtype=dtype,
            shard_size=shard_size,
            only=only,
            exclude=exclude,
            rename=rename,
            missing=missing,
            mismatch=mismatch,
            template=template,
            allow_nonfinite=allow_nonfinite,
            seed=seed,
        )
    graph, options = _read(recipe, memory=memory, workers=workers, device=device, lenient=lenient)
    plans = engine.plan_graph(graph, Path(out).expanduser(), options)
    engine.check_outputs(plans, overwrite=overwrite)

    def write(made: engine.Plan, is_part: bool) -> engine.MergeResult:
        return engine.write(made, overwrite=overwrite or is_part, resume=resume, progress=progress)

    found: engine.MergeResult = engine.carry_out(plans, options, write, lambda _: None)
    return found


def merge_state_dicts(
    method: str,
    *,
    base: Mapping[str, Tensor] | None = None,
    models: Sequence[Mapping[str, Tensor]],
    parameters: Mapping[str, Any] | None = None,
    granularity: str | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    memory: str | int = DEFAULT_MEMORY,
    workers: int | None = None,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rename: Sequence[str] = (),
    missing: Missing = "error",
    mismatch: Mismatch = "error",
    template: str | None = None,
    allow_nonfinite: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Merge state dicts in memory, by the same code and to the same bits as files.

    Arguments as ``merge``, with maps of names to tensors in place of paths. Returns name -> tensor on the CPU; tied
    names share one tensor. Raises InputError kinds. Cost: the output, and the memory budget.

    >>> import torch, stockpot
    >>> base = {"w": torch.zeros(2)}
    >>> models = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}]
    >>> stockpot.merge_state_dicts("model_stock", base=base, models=models)["w"]
    tensor([0.8284, 0.4142])
    """
    names = [f"model {number}" for number in range(1, len(models) + 1)]
    recipe = build_recipe(
        method,
        base=None if base is None else "base",
        models=names,
        parameters=parameters,
        granularity=granularity,
        dtype=dtype,
        only=only,
        exclude=exclude,
        rename=rename,
        missing=missing,
        mismatch=mismatch,
        template=template,
        allow_nonfinite=allow_nonfinite,
        seed=seed,
    )
    job = engine.resolve(recipe)
    by_name = dict(zip(names, models, strict=True))
    sources = [engine.MemorySource(base, "base")] if base is not None else []
    sources += [engine.MemorySource(by_name[name], name) for name in job.models]
    made = engine.make_plan(
        job,
        engine.with_statistics(job, engine.Inputs(tuple(sources), base is not None)),
        Path("memory"),
        memory=parse_size(memory),
        workers=workers,
        device=engine.choose_device(device),
    )
    return engine.to_memory(made)[0]


def geometry(
    *,
    base: Ref,
    models: Sequence[Ref],
    centre: Ref | None = None,
    granularity: str = "tensor",
    block_regex: str | None = None,
    kinds: Mapping[str, str] | None = None,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rename: Sequence[str] = (),
    missing: Missing = "error",
    mismatch: Mismatch = "error",
    stored: Ref | None = None,
    device: str = "cpu",
    memory: str | int = DEFAULT_MEMORY,
    workers: int | None = None,
    progress: engine.Progress | None = None,
) -> engine.Geometry:
    """Norms, angles and distances of fine-tunes around their base, from one pass over the weights.

    Arguments: ``base`` and ``models`` (one or more): folders, files or Hub ids; ``centre``, a checkpoint to measure
    distances from, such as the mean of many fine-tunes; ``granularity``: row, tensor, block, kind or model;
    ``block_regex``, what of a name is its block; ``kinds``, regex -> kind, asked before our names;
    ``stored``, the output of a Model Stock merge of the same inputs: what it measured is then not measured again;
    the rest as ``merge``. Returns a Geometry. Raises InputError kinds. Cost: each input is read once; memory is the
    budget and N^2 numbers for each group.

    >>> stockpot.geometry(base="base", models=["ft1", "ft2"]).by("kind").t  # doctest: +SKIP
    """
    refs = [*models, *([] if centre is None else [centre])]
    if not models:
        raise errors.UsageError("geometry needs models", expected="at least one", got=0)
    recipe = build_recipe(
        "geometry",
        base=base,
        models=refs,
        parameters={} if block_regex is None else {"block_regex": block_regex},
        only=only,
        exclude=exclude,
        rename=rename,
        missing=missing,
        mismatch=mismatch,
    )
    return engine.measure_geometry(
        recipe,
        centre=None if centre is None else str(centre),
        granularity=granularity,
        kinds=kinds or {},
        memory=parse_size(memory),
        workers=workers,
        device=engine.choose_device(device),
        stored=None if stored is None else str(stored),
        progress=progress,
    )


def _is_recipe_file(method: str | Path) -> bool:
    return isinstance(method, Path) or method.endswith((".yaml", ".yml"))
