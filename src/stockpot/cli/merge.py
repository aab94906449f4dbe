"""``stockpot merge``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stockpot import errors
from stockpot.cli import _output, _signals
from stockpot.cli._options import Json, Lenient, Quiet, Verbose

if TYPE_CHECKING:
    from stockpot.engine import MergeResult, Options, Plan


def merge(
    models: Annotated[
        list[str], typer.Argument(metavar="RECIPE.yaml | FT1 FT2 ...", help="A recipe, or the fine-tunes.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write, or one .safetensors or .pt file.")],
    method: Annotated[str | None, typer.Option("--method", help="Method, see: stockpot methods.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="The checkpoint that all were fine-tuned from.")] = None,
    last: Annotated[
        int | None, typer.Option("--last", metavar="K", help="Each of FT1 .. is a run: take its last K checkpoints.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the method (YAML value).")
    ] = None,
    granularity: Annotated[
        str | None, typer.Option("--granularity", metavar="tensor|row|block|model", help="What shares one ratio.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="bfloat16|float16|float32|float64", help="Dtype of the output.")
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda|cuda:N|auto", help="Where to compute.")] = "cpu",
    memory: Annotated[str, typer.Option("--memory", help="Bound on our buffers.")] = "192MiB",
    workers: Annotated[int | None, typer.Option("--workers", help="Threads (default: the cores, at most 8).")] = None,
    shard_size: Annotated[
        str | None, typer.Option("--shard-size", metavar="5GB", help="Largest weight file (default: as the template).")
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="REGEX", help="Merge only these tensors.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="REGEX", help="Copy these tensors from the template.")
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option("--rename", metavar="[base:|N:]REGEX=REPL", help="Rename tensors of one or all inputs."),
    ] = None,
    missing: Annotated[
        str | None,
        typer.Option("--missing", metavar="error|base|average|first", help="A tensor that some input lacks."),
    ] = None,
    mismatch: Annotated[
        str | None, typer.Option("--mismatch", metavar="error|base|first", help="A tensor whose shapes differ.")
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", metavar="base|N", help="Whose names, files and side files to take.")
    ] = None,
    allow_nonfinite: Annotated[bool, typer.Option("--allow-nonfinite", help="Pass NaN and Inf through.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of random methods.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output of stockpot.")] = False,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Start an interrupted merge over.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.")] = False,
    lenient: Lenient = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Merge checkpoints into one.

    Either `stockpot merge RECIPE.yaml --out OUT`,
    or `stockpot merge --method model_stock --base BASE FT1 FT2 --out OUT`.
    """
    with _signals.loading():
        from stockpot import _api
        from stockpot.checkpoint import last_checkpoints
        from stockpot.cli._recipe import recipe_from_arguments
        from stockpot.engine import check_outputs, plan_graph

    if last is not None:
        if method is None:
            raise errors.UsageError("--last does not go with a recipe", remedy="give --method, and the runs")
        models = [one for run in models for one in last_checkpoints(run, last)]
    changes: dict[str, Any] = {
        "granularity": granularity,
        "dtype": dtype,
        "shard_size": shard_size,
        "seed": seed,
        "allow_nonfinite": allow_nonfinite or None,
        "only": only,
        "exclude": exclude,
        "rename": rename,
        "missing": missing,
        "mismatch": mismatch,
        "template": template,
    }
    graph, from_file = recipe_from_arguments(models, method, base, settings or [], changes, lenient=lenient)
    options = _api.make_options(memory=memory, workers=workers, device=device, from_file=from_file, lenient=lenient)
    plans = plan_graph(graph, out.expanduser(), options)
    check_outputs(plans, overwrite=overwrite, dry_run=dry_run)
    if dry_run:
        _print_plans(plans, json=json, quiet=quiet)
    else:
        _carried_out(plans, options, overwrite=overwrite, resume=not no_resume, json=json, quiet=quiet)


def _print_plans(plans: Sequence[Plan], *, json: bool, quiet: bool) -> None:
    """What would be done."""
    from stockpot.report import plan_table

    *parts, result = plans
    warnings = [warning for plan in plans for warning in plan.warnings]
    if json:
        made = {"parts": [{"name": plan.out.name, **plan.record()} for plan in parts]} if parts else {}
        _output.print_object("merge", "planned", warnings, {**result.record(), **made})
    else:
        for plan in plans:
            _output.print_table(plan_table(plan))
    _output.print_warnings(warnings, quiet)


def _carried_out(
    plans: Sequence[Plan], options: Options, *, overwrite: bool, resume: bool, json: bool, quiet: bool
) -> None:
    """Do what the plans say."""
    with _signals.loading():
        from stockpot.engine import carry_out, write
        from stockpot.report import human_bytes, merge_summary

    def work(plan: Plan, is_part: bool) -> MergeResult:
        _output.print_warnings(plan.warnings, quiet)
        if size := plan.bytes_to_download:
            _output.say(f"stockpot: downloading {human_bytes(size)} from the hub, into its cache", quiet)
        with _output.byte_progress(f"merging {plan.out.name}" if is_part else "merging", quiet) as progress:
            made = write(plan, overwrite=overwrite or is_part, resume=resume, progress=progress)
        if is_part:
            _output.say(f"stockpot: {plan.out}: {merge_summary(made)}", quiet)
        return made

    def reused(plan: Plan) -> None:
        _output.say(f"stockpot: {plan.out}: made before by the same job, and whole", quiet)

    result: MergeResult = carry_out(plans, options, work, reused)
    if json:
        _output.print_object("merge", "done", result.warnings, result.record())
    _output.say(f"stockpot: {merge_summary(result)}", quiet)
