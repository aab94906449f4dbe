"""The demo's page and the README show the numbers of the run that is kept beside them."""

import json
from pathlib import Path

import docs_demo

from stockpot.report import demo_cell

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "docs" / "results" / "demo.json").read_text("utf-8"))


def test_the_page_has_every_row_of_the_run():
    """Three tables, line by line."""
    page = (ROOT / "docs" / "demo.md").read_text("utf-8").splitlines()
    for table in docs_demo.tables(RECORD):
        assert [line for line in table if line not in page] == []


def test_the_readme_has_rows_of_the_run():
    """Both accuracies of what it names, with their standard errors; and at least five kinds."""
    rows = {row["name"]: row["values"] for row in RECORD["rows"]}
    shown = [
        [cell.strip() for cell in line.strip("| \n").split("|")]
        for line in (ROOT / "README.md").read_text("utf-8").splitlines()
        if line.startswith("| ") and line.count("|") == 5 and "±" in line
    ]
    assert len(shown) >= 5
    for name, cost, plain, shifted in shown:
        assert plain == demo_cell(rows[name], "accuracy"), name
        assert shifted == demo_cell(rows[name], "shifted_accuracy"), name
        assert cost == str(next(row["fine_tunes"] for row in RECORD["rows"] if row["name"] == name))


def test_the_run_was_a_full_one():
    """Five repetitions, four learning rates, eight fine-tunes at each."""
    settings = RECORD["settings"]
    assert (settings["repetitions"], len(settings["rates"]), settings["finetunes"]) == (5, 4, 8)
    assert RECORD["status"] == "done"
