"""Write the generated pages of the documentation: ``python scripts/docs_pages.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from docs_methods import built_in, index_page, method_page

from stockpot.cli import app

ROOT = Path(__file__).resolve().parents[1]


def cli_page() -> str:
    """``docs/cli.md``: every command, its arguments and options."""
    group: Any = typer.main.get_command(app)
    lines = ["# Every command and option", "", "Generated from `--help` by `make docs`.", ""]
    for name, command in _commands(group):
        lines += [f"## stockpot {name}", "", (command.help or "").split("\f")[0].strip(), ""]
        lines += ["| argument or option | default | what |", "|---|---|---|"]
        for parameter in command.params:
            lines.append(_row(parameter))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _commands(group: Any, before: str = "") -> list[tuple[str, Any]]:
    """Every command with its whole name, those of groups too."""
    found: list[tuple[str, Any]] = []
    for name, command in group.commands.items():
        inside = hasattr(command, "commands")
        found += _commands(command, f"{before}{name} ") if inside else [(before + name, command)]
    return found


def _row(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    form = ", ".join(parameter.opts) if is_option else ""
    metavar = parameter.metavar or ("" if getattr(parameter, "is_flag", False) else parameter.name.upper())
    shown = " ".join(part for part in (form, metavar) if part).replace("|", "\\|")
    default = parameter.default
    stated = (
        "required" if parameter.required else "" if default in (None, False) or callable(default) else f"`{default}`"
    )
    return f"| `{shown}` | {stated} | {(parameter.help or '').replace('|', chr(92) + '|')} |"


def write_pages() -> None:
    """All of them; a page of a method that is no more goes."""
    docs = ROOT / "docs"
    (docs / "cli.md").write_text(cli_page(), "utf-8")
    (docs / "methods.md").write_text(index_page(), "utf-8")
    (docs / "methods").mkdir(exist_ok=True)
    for page in (docs / "methods").glob("*.md"):
        page.unlink()
    for name, method in built_in().items():
        (docs / "methods" / f"{name}.md").write_text(method_page(method), "utf-8")


if __name__ == "__main__":
    write_pages()
