"""``stockpot geometry``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stockpot import errors
from stockpot.cli import _output, _signals
from stockpot.cli._options import Json, Quiet, Verbose


def geometry(
    models: Annotated[list[str], typer.Argument(metavar="FT...", help="Fine-tunes: folders, files or Hub ids.")],
    base: Annotated[str, typer.Option("--base", metavar="BASE", help="The model they were fine-tuned from.")],
    centre: Annotated[
        str | None, typer.Option("--centre", metavar="CKPT", help="A point to measure from: a mean of many, say.")
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option("--granularity", metavar="row|tensor|block|kind|model", help="Groups (default tensor)."),
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", metavar="REGEX=KIND", help="Kind of the tensors it matches.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="REGEX", help="These tensors alone.")] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", metavar="REGEX", help="Not these.")] = None,
    rename: Annotated[
        list[str] | None, typer.Option("--rename", metavar="[base:|N:]REGEX=REPL", help="Change names of inputs.")
    ] = None,
    missing: Annotated[
        str | None, typer.Option("--missing", metavar="error|base|average|first", help="A tensor that some lack.")
    ] = None,
    mismatch: Annotated[
        str | None, typer.Option("--mismatch", metavar="error|base|first", help="Shapes that differ.")
    ] = None,
    stored: Annotated[
        str | None,
        typer.Option("--stored", metavar="OUT", help="A Model Stock merge of these inputs: not read again."),
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json-out", metavar="FILE", help="All numbers as JSON.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="All numbers as CSV.")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="A report with pictures.")] = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", metavar="DIR", help="The pictures as PNG, SVG, PDF, with their data.")
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda|cuda:N|auto", help="Where to compute.")] = "cpu",
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="Bound on the buffers.")] = "192MiB",
    workers: Annotated[int | None, typer.Option("--workers", metavar="N", help="Threads.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Angles, norms and distances of fine-tunes around their base, and how far Model Stock would go.

    `stockpot geometry --base BASE FT1 FT2`
    """
    with _signals.loading():
        import json as jsonlib

        from stockpot import _api, report

    kinds = {}
    for text in kind or []:
        pattern, equals, name = text.rpartition("=")
        if not equals or not pattern:
            raise errors.ParameterError("--kind cannot be read", expected="REGEX=KIND", got=repr(text))
        kinds[pattern] = name
    for path in (json_out, csv, html, figures):
        if path is not None and not path.absolute().parent.is_dir():
            raise errors.OutputError("there is no such folder", file=str(path.parent), remedy="make it first")
    if html is not None or figures is not None:
        report.require_drawing()  # before the weights are read
    policies: dict[str, Any] = {
        "missing": missing or "error",
        "mismatch": mismatch or "error",
    }  # the recipe checks them
    with _output.byte_progress("measuring", quiet) as progress:
        found = _api.geometry(
            base=base,
            models=models,
            centre=centre,
            granularity=granularity or "tensor",
            kinds=kinds,
            only=only or (),
            exclude=exclude or (),
            rename=rename or (),
            **policies,
            stored=stored,
            device=device,
            memory=memory,
            workers=workers,
            progress=progress,
        )
    if json_out is not None:
        _write(json_out, jsonlib.dumps(found.data(), indent=1, allow_nan=False) + "\n")
    if csv is not None:
        _write(csv, found.csv())
    if html is not None:
        _write(html, report.geometry_page(found))
    if figures is not None:
        report.save_pictures(report.geometry_pictures(found), figures)
    warnings = [*found.warnings, *report.geometry_findings(found)]
    if json:
        _output.print_object("geometry", "done", warnings, found.data())
    else:
        # Hundreds of tensors are for files; a terminal gets the kinds, unless it was asked for more.
        _output.print_table(report.geometry_table(found if granularity else found.by("kind")))
        for line in report.geometry_summary(found):
            print(line)
    _output.print_warnings(warnings, quiet)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise errors.RunError(f"writing failed ({error.strerror})", file=str(path), remedy="check the disk") from error
