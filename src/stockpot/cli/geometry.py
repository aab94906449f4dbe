"""``stockpot geometry``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stockpot import errors
from stockpot.cli import _options as opt
from stockpot.cli import _output, _signals, _studies


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
    only: opt.Only = None,
    exclude: opt.Exclude = None,
    rename: opt.Rename = None,
    missing: opt.MissingTensors = None,
    mismatch: opt.MismatchedTensors = None,
    stored: Annotated[
        str | None,
        typer.Option("--stored", metavar="OUT", help="A Model Stock merge of these inputs: not read again."),
    ] = None,
    json_out: opt.JsonOut = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="All numbers as CSV.")] = None,
    html: opt.Html = None,
    figures: opt.Figures = None,
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda|cuda:N|auto", help="Where to compute.")] = "cpu",
    memory: opt.Memory = "192MiB",
    workers: opt.Workers = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Angles, norms and distances of fine-tunes around their base, and how far Model Stock would go.

    `stockpot geometry --base BASE FT1 FT2`
    """
    with _signals.loading():
        from stockpot import _api, report

    kinds = {}
    for text in kind or []:
        pattern, equals, name = text.rpartition("=")
        if not equals or not pattern:
            raise errors.ParameterError("--kind cannot be read", expected="REGEX=KIND", got=repr(text))
        kinds[pattern] = name
    _studies.require_places(json_out, csv, html, folder=figures)
    _studies.require_report(html, figures)  # before the weights are read
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
    data = found.data() if json or json_out is not None else {}
    _studies.write_json(json_out, data)
    if csv is not None:
        _studies.write_text(csv, found.csv())
    _studies.write_report(html, lambda: report.geometry_page(found), figures, lambda: report.geometry_pictures(found))
    warnings = [*found.warnings, *report.geometry_findings(found)]
    if json:
        _output.print_object("geometry", "done", warnings, data)
    else:
        # Hundreds of tensors are for files; a terminal gets the kinds, unless it was asked for more.
        _output.print_table(report.geometry_table(found if granularity else found.by("kind")))
        for line in report.geometry_summary(found):
            _output.print_line(line)
    _output.print_warnings(warnings, quiet)
