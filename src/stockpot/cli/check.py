"""``stockpot check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stockpot import errors
from stockpot.cli import _output, _signals
from stockpot.cli._options import Json, Lenient, Memory, Quiet, Verbose


def check(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="A recipe: one merge, or several documents.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the method (YAML value).")
    ] = None,
    lenient: Lenient = False,
    memory: Memory = "192MiB",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what a recipe would do, or everything that is wrong with it, from headers alone. Nothing is written."""
    with _signals.loading():
        from stockpot import _api
        from stockpot.cli._recipe import recipe_from_arguments
        from stockpot.engine import plan_graph
        from stockpot.report import check_record, check_table

    if not recipe.endswith((".yaml", ".yml")):
        raise errors.UsageError("check takes a recipe", expected="a file that ends in .yaml", got=recipe)
    graph, _ = recipe_from_arguments([recipe], None, None, settings or [], {}, lenient=lenient)
    options = _api.make_options(memory=memory, workers=None, device="cpu", from_file=True, lenient=lenient)
    plans = plan_graph(graph, Path(recipe).with_suffix(""), options)
    warnings = [warning for plan in plans for warning in plan.warnings]
    if json:
        _output.print_object("check", "done", warnings, check_record(plans))
    elif not quiet:
        for plan in plans:
            _output.print_table(check_table(plan))
    _output.print_warnings(warnings, quiet)
    if not json:
        _output.print_line("ok")
