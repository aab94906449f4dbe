"""docs/cli.md is what ``--help`` prints."""

from __future__ import annotations

from pathlib import Path

from docs_pages import cli_page

ROOT = Path(__file__).resolve().parents[2]


def test_the_cli_page_is_current() -> None:
    """Regenerate it with ``make docs`` when a command changes."""
    assert (ROOT / "docs" / "cli.md").read_text("utf-8") == cli_page()
