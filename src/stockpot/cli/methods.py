"""``stockpot methods``."""

from __future__ import annotations

from typing import Annotated

import typer

from stockpot.cli import _output
from stockpot.cli._options import Json


def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method whole.")] = None,
    json: Json = False,
) -> None:
    """List the methods, or explain one."""
    from stockpot.methods import all_methods, get_method
    from stockpot.report import method_page, methods_table

    chosen = [get_method(name)] if name else list(all_methods().values())
    if json:
        content = [
            {
                "name": method.name,
                "summary": method.summary,
                "base": method.base,
                "models": list(method.models),
                "reference": method.reference,
                "parameters": {p.name: p.describe() for p in method.parameters.values()},
            }
            for method in chosen
        ]
        _output.print_object("methods", "done", [], {"methods": content})
    elif name:
        print(method_page(chosen[0]))
    else:
        _output.print_table(methods_table(chosen))
