"""``stockpot bench clip``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from stockpot import errors
from stockpot.cli import _options as opt
from stockpot.cli import _output, _signals, _studies
from stockpot.cli.wise_ft import parse_alphas

bench = typer.Typer(help="The papers' own tables, given the data.", no_args_is_help=True)
RESULTS, CACHE = "results.json", "evaluations.sqlite"


@bench.command("clip")
def clip(
    checkpoints: Annotated[list[str], typer.Argument(metavar="CHECKPOINT...", help="Fine-tunes of one CLIP.")],
    base: Annotated[str, typer.Option("--base", metavar="ZEROSHOT", help="The CLIP before fine-tuning.")],
    imagenet: Annotated[Path, typer.Option("--imagenet", metavar="DIR", help="ImageNet's validation images.")],
    v2: Annotated[Path | None, typer.Option("--v2", metavar="DIR", help="ImageNet V2, matched frequency.")] = None,
    sketch: Annotated[Path | None, typer.Option("--sketch", metavar="DIR", help="ImageNet-Sketch.")] = None,
    r: Annotated[Path | None, typer.Option("--r", metavar="DIR", help="ImageNet-R.")] = None,
    objectnet: Annotated[Path | None, typer.Option("--objectnet", metavar="DIR", help="ObjectNet 1.0.")] = None,
    a: Annotated[Path | None, typer.Option("--a", metavar="DIR", help="ImageNet-A.")] = None,
    held_out: Annotated[
        Path | None, typer.Option("--held-out", metavar="DIR", help="Training images that choose the greedy soup.")
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option("--also", metavar="[KEY=]MODEL", help="Scored, not mixed; KEY: a published row.")
    ] = None,
    alphas: Annotated[
        str, typer.Option("--alphas", metavar="A:B:STEP|A,B,...", help="WiSE-FT's shares of the first checkpoint.")
    ] = "0.5",
    classnames: Annotated[
        Path | None, typer.Option("--classnames", metavar="FILE", help="Names of the 1000 classes, one a line.")
    ] = None,
    templates: Annotated[
        Path | None, typer.Option("--templates", metavar="FILE", help="Texts with {} for the class, one a line.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="DIR", help="Where the base has no tokenizer.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help=f"For {RESULTS} and the cache of this bench.")
    ] = None,
    cache: opt.Cache = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="Images of each test set at most.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", metavar="N", help="Images at once.")] = None,
    device: Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="Where the model is.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", metavar="DTYPE", help="Arithmetic of it.")] = None,
    memory: opt.Memory = "192MiB",
    workers: opt.Workers = None,
    json_out: opt.JsonOut = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """CLIP checkpoints, their soups, WiSE-FT and Model Stock on ImageNet and its shifts, beside published numbers.

    `stockpot bench clip FT1 FT2 --base ZEROSHOT --imagenet DIR --v2 DIR --r DIR --out bench`
    """
    with _signals.loading():
        from stockpot import lab

    places = parse_alphas(alphas)
    _studies.require_places(json_out, folder=out)
    kept = str(out / CACHE) if out is not None and cache is None else cache
    study = _studies.Study(
        cache=kept, limit=limit, batch=batch, device=device, precision=precision, memory=memory, workers=workers,
        json_out=json_out, json=json, quiet=quiet, verbose=verbose,
    )  # fmt: skip
    data = lab.ClipData(imagenet, v2, sketch, r, objectnet, a, held_out)
    words = lab.ClipWords(classnames, templates, tokenizer)
    with _made(out), study.running("bench clip") as running:
        found = lab.clip_bench(
            checkpoints, base, data, also=also or (), alphas=places, words=words, workers=workers, running=running
        )
    _studies.write_json(None if out is None else out / RESULTS, found.data())
    study.finish("bench clip", found, None if json else lab.clip_table(found), lab.clip_summary(found))
    if out is not None:
        _output.say(f"stockpot: written to {out / RESULTS}", quiet)


@contextmanager
def _made(out: Path | None) -> Iterator[None]:
    """OUT is there; it goes again where the user's input is refused and nothing was scored."""
    there = out is None or out.exists()
    if out is not None:
        try:
            out.mkdir(exist_ok=True)
        except OSError as error:
            raise errors.OutputError(f"the folder cannot be made ({error.strerror})", file=str(out)) from None
    try:
        yield
    except errors.InputError:
        if (
            out is not None
            and not there
            and not ((out / CACHE).exists() and _studies.open_cache(str(out / CACHE)).entries())
        ):
            shutil.rmtree(out)
        raise
