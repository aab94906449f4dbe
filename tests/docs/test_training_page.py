"""The training page's code runs, and its example prints the table that it shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text("utf-8")


@pytest.mark.parametrize("number", [0, 1])
def test_code_runs(number, capsys):
    """As it stands there."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    exec(compile(blocks[number], "docs/training.md", "exec"), {})
    assert number or capsys.readouterr().out == "[2, 3, 4]\n"


def test_the_example_prints_its_table():
    """One run of it: the rows of the page, each a share of right answers."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "periodic_model_stock.py", "--runs", "1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()[1:]]
    assert len(rows) == 6
    assert len(re.findall(r"^\| [^|]+ \| \d\d\.\d\d \| \d\d\.\d\d \|$", PAGE, re.MULTILINE)) == 6
    assert all(50 < float(score) < 100 for row in rows for score in row[1:])
