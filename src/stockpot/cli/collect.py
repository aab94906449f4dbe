"""``stockpot collect fisher`` and ``stockpot collect inputs``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stockpot.cli import _options as opt
from stockpot.cli import _output, _signals

if TYPE_CHECKING:
    from stockpot.collect import Collected

collect = typer.Typer(help="What data say of a model's weights, for methods that take it.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder or Hub id, with its config and tokenizer.")]
Data = Annotated[
    Path, typer.Option("--data", metavar="FILE|DIR", help="JSONL, CSV or text; for images FOLDER/CLASS/IMAGE.")
]
Out = Annotated[Path, typer.Option("--out", metavar="FILE.safetensors", help="Where the values go.")]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", help="Examples at most.")]
Batch = Annotated[int | None, typer.Option("--batch", metavar="N", help="Examples at once (default 8).")]
Device = Annotated[str, typer.Option("--device", metavar="cpu|cuda|cuda:N", help="Where to compute.")]
Dtype = Annotated[
    str, typer.Option("--dtype", metavar="float32|bfloat16|float16|float64", help="Arithmetic; sums are float64.")
]


@collect.command("fisher")
def fisher(
    model: Model,
    data: Data,
    out: Out,
    labels: Annotated[
        str, typer.Option("--labels", metavar="sampled|exact|given", help="Whose answers: its own, all, the data's.")
    ] = "sampled",
    samples: Annotated[int, typer.Option("--samples", metavar="N", help="Answers drawn for each example.")] = 1,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the draws.")] = 0,
    limit: Limit = None,
    batch: Batch = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    overwrite: opt.Overwrite = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Diagonal Fisher values of a model's parameters, for `--method fisher`.

    `stockpot collect fisher FT1 --data dev.jsonl --out ft1-fisher.safetensors`
    """
    with _signals.loading():
        from stockpot.collect import collect_fisher

    options: dict[str, Any] = {"labels": labels} | ({} if batch is None else {"batch": batch})  # checked there
    with _output.count_progress("collecting", quiet) as progress:
        found = collect_fisher(
            model, data=data, out=out, samples=samples, seed=seed, limit=limit, device=device, dtype=dtype,
            overwrite=overwrite, progress=progress, **options,
        )  # fmt: skip
    _told(found, json=json, quiet=quiet)


@collect.command("inputs")
def inputs(
    model: Model,
    data: Data,
    out: Out,
    limit: Limit = None,
    batch: Batch = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    overwrite: opt.Overwrite = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Gram matrices of what a model's linear layers are given, for `--method regmean`.

    `stockpot collect inputs FT1 --data dev.jsonl --out ft1-inputs.safetensors`
    """
    with _signals.loading():
        from stockpot.collect import collect_inputs

    options: dict[str, Any] = {} if batch is None else {"batch": batch}
    with _output.count_progress("collecting", quiet) as progress:
        found = collect_inputs(
            model, data=data, out=out, limit=limit, device=device, dtype=dtype, overwrite=overwrite,
            progress=progress, **options,
        )  # fmt: skip
    _told(found, json=json, quiet=quiet)


def _told(found: Collected, *, json: bool, quiet: bool) -> None:
    """The result, as data or in a sentence, with the parameters that were left out."""
    _output.print_warnings(found.warnings, quiet)
    if json:
        _output.print_object("collect", "done", found.warnings, found.record())
    reasons: dict[str, list[str]] = {}
    for name, why in found.left_out.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        _output.say(f"stockpot: left out ({why}): {names[0]}{more}", quiet)
    _output.say(
        f"stockpot: {found.kind} of {found.tensors} tensors from {found.examples} examples, in {found.seconds:.1f} s: "
        f"{found.out}",
        quiet,
    )
