"""``stockpot geometry`` as it is typed."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ._kitchen import Kitchen, Outcome, Program, snapshot

ENTRY = {"kind", "shape", "base_norm", "norms", "cosines", "t", "t_free"}


def asked(kitchen: Kitchen, *more: str) -> list[str]:
    """The shortest use."""
    return ["geometry", "--base", str(kitchen.base), str(kitchen.a), str(kitchen.b), *more]


def test_a_table_and_sentences(program: Program, kitchen: Kitchen) -> None:
    """Kinds in a table, the whole in words; nothing is written."""
    before = snapshot(kitchen.root)
    outcome = program.does(*asked(kitchen))
    for word in ("weight", "model", "|d| / |w0|", "fine-tunes of", "median angle", "Model Stock would go"):
        assert word in outcome.out
    assert snapshot(kitchen.root) == before


def test_one_object(program: Program, kitchen: Kitchen) -> None:
    """``--json`` has all groups, their pairs and the total."""
    found = program.does(*asked(kitchen, "--json", "--quiet")).data
    assert (found["command"], found["status"], found["granularity"]) == ("geometry", "done", "tensor")
    assert found["models"] == [str(kitchen.a), str(kitchen.b)]
    assert found["groups"]
    for entry in [*found["groups"].values(), found["total"]]:
        assert set(entry) >= ENTRY
        assert len(entry["cosines"]) == len(found["pairs"])
    assert found["pairs"][0] == "01"


@pytest.mark.parametrize("level", ["row", "tensor", "block", "kind", "model"])
def test_levels(level: str, program: Program, kitchen: Kitchen) -> None:
    """Each granularity, as table and as object, with the same total."""
    totals = [program.does(*asked(kitchen, "--json", "--granularity", one)).data["total"] for one in ("model", level)]
    assert totals[0]["norms"] == pytest.approx(totals[1]["norms"], rel=1e-12)
    assert "model" in program.does(*asked(kitchen, "--granularity", level)).out


def test_files(program: Program, kitchen: Kitchen, tmp_path: Path) -> None:
    """``--json-out`` and ``--csv`` hold the same numbers, and the same bytes each time."""
    made = []
    for _ in range(2):
        program.does(*asked(kitchen, "--json-out", str(tmp_path / "g.json"), "--csv", str(tmp_path / "g.csv")))
        made.append((tmp_path / "g.json").read_bytes() + (tmp_path / "g.csv").read_bytes())
    assert made[0] == made[1]
    groups = json.loads((tmp_path / "g.json").read_text())["groups"]
    lines = list(csv.DictReader((tmp_path / "g.csv").read_text().splitlines()))
    assert [line["name"] for line in lines] == list(groups)
    for line in lines:
        assert float(line["norm_0"]) == groups[line["name"]]["norms"][0]
        assert line["kind"] == groups[line["name"]]["kind"]


def test_a_kind_of_ones_own(program: Program, kitchen: Kitchen) -> None:
    """``--kind REGEX=KIND`` is asked before our names; an unknown kind offers the nearest."""
    found = program.does(*asked(kitchen, "--json", "--kind", "weight$=head")).data
    assert {entry["kind"] for name, entry in found["groups"].items() if name.endswith("weight")} == {"head"}
    refused = program(*asked(kitchen, "--kind", "weight$=hed"))
    assert refused.code == 2
    assert "did you mean head" in refused.first


def test_what_to_look_at(program: Program, kitchen: Kitchen, tmp_path: Path) -> None:
    """A model equal to the base, two equal models, one of another base: each is said once, in words."""
    state = load_file(kitchen.a / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    base = {name: torch.randn(value.shape, generator=generator) for name, value in state.items()}
    near = {name: value + 0.01 * torch.randn(value.shape, generator=generator) for name, value in base.items()}
    other = {name: torch.randn(value.shape, generator=generator) for name, value in base.items()}
    for name, tensors in {"base": base, "same": base, "near": near, "twin": near, "far": other}.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    models = [str(tmp_path / f"{name}.safetensors") for name in ("same", "near", "twin", "far")]
    err = program.does("geometry", "--base", str(tmp_path / "base.safetensors"), *models).err
    assert "same.safetensors is identical to the base" in err
    assert "near.safetensors and" in err
    assert "are identical" in err
    assert "perhaps another base" in err
    assert "is an outlier" in err


def test_refusals(program: Program, kitchen: Kitchen, tmp_path: Path) -> None:
    """Bad input costs one line: no base, no such model, other shapes (once, with a count), no such folder."""

    def refused(kind: str, *arguments: object) -> Outcome:
        return program.refuses("geometry", *arguments, kind=kind, command="geometry")

    assert "--base" in refused("usage", kitchen.a).first
    assert "nowhere" in refused("not_found", "--base", kitchen.base, "nowhere").first
    assert "no such folder" in refused("output", *asked(kitchen, "--csv", str(tmp_path / "no" / "g.csv"))[1:]).first
    state = {name: torch.zeros(3, 5, 7) for name in (f"t{n}" for n in range(100))}
    save_file(state, tmp_path / "a.safetensors")
    save_file({name: torch.zeros(7, 5) for name in state}, tmp_path / "b.safetensors")
    outcome = refused("mismatch", "--base", tmp_path / "b.safetensors", tmp_path / "a.safetensors")
    assert "shape" in outcome.first
    assert len(outcome.err.splitlines()) <= 12


def test_a_report_and_figures(program: Program, kitchen: Kitchen, tmp_path: Path) -> None:
    """``--html`` and ``--figures`` write what they say; a folder for figures is made."""
    page, figures = tmp_path / "report.html", tmp_path / "figures"
    program.does(*asked(kitchen, "--html", str(page), "--figures", str(figures), "--quiet"))
    text = page.read_text("utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert f"Geometry of 2 fine-tunes of {kitchen.base}" in text
    assert {path.suffix for path in figures.iterdir()} == {".png", ".svg", ".pdf", ".json"}


def test_a_missing_extra_is_told_first(program: Program, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without jinja2 ``--html`` says what to install before a weight is read; a bad policy is one line too."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "jinja2" else real(name, *more)
    )
    monkeypatch.setattr("stockpot._api.geometry", lambda **_: pytest.fail("the weights were read"))
    refused = program(*asked(kitchen, "--html", str(kitchen.root / "r.html")))
    assert refused.code == 2
    assert "pip install 'stockpot[report]'" in refused.first
    monkeypatch.undo()
    assert program(*asked(kitchen, "--missing", "nowhere")).code == 2


@pytest.mark.parametrize(("text", "says"), [("([=norm", "no regular expression"), ("zzz=nrm", "did you mean norm")])
def test_a_bad_kind_is_told_before_anything_is_opened(text: str, says: str, program: Program) -> None:
    """One line, exit 2, even where no tensor matches and no model is there."""
    refused = program("geometry", "--base", "nowhere", "nowhere", "--kind", text)
    assert refused.code == 2
    assert says in refused.first
