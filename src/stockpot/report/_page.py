"""Records as one HTML file. Needs jinja2 and matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

from stockpot import errors
from stockpot._version import __version__
from stockpot.report._drawing import Picture, require_drawing, svg


def rendered_page(template: str, pictures: Sequence[Picture], **content: object) -> str:
    """One self-contained file: no script, style, font or picture comes from elsewhere; the same bytes each time."""
    require_drawing()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("stockpot.report"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=_printed,
    )
    figures = [
        {"name": one.name, "title": one.title, "caption": one.caption, "svg": svg(one, follow=True)} for one in pictures
    ]
    return environment.get_template(f"{template}.html.j2").render(version=__version__, figures=figures, **content)


def _printed(value: object) -> object:
    """Text that no terminal is steered by; what is markup already stays."""
    return errors.printable(value) if type(value) is str else value
