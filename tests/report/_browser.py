"""A real browser without a window, and what it says of a page."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed")
SETTLED_MILLISECONDS = 3000


@dataclass(frozen=True)
class Visit:
    """The page as it stands after its scripts ran, and what was said on the console: errors, and requests that the
    page's own policy forbids.
    """

    dom: str
    console: list[str]


def visit(page: Path, *more: str) -> Visit:
    """Open a file and let its scripts run."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory() as profile:
        command = [
            PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}/data",
            "--enable-logging=stderr", f"--virtual-time-budget={SETTLED_MILLISECONDS}", "--dump-dom", *more,
            page.resolve().as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Visit(done.stdout, said)


def screenshot(page: Path, out: Path, *, width: int, height: int, dark: bool = False) -> None:
    """A picture of the page's top."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory() as profile:
        command = [
            PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--screenshot={out}",
            *(["--blink-settings=preferredColorScheme=0"] if dark else []), page.resolve().as_uri(),
        ]  # fmt: skip
        subprocess.run(command, capture_output=True, check=True, timeout=120)
