"""Parse, call, print; one command a file."""

from stockpot.cli._app import app, main

__all__ = ["app", "main"]
