"""The report of a geometry: one file that a browser opens, light and dark, wide and narrow."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from stockpot.engine import Geometry
from stockpot.report import geometry_page, geometry_pictures, save_pictures

from ._browser import needs_browser, screenshot, visit

FIGURES = ["layers", "cosines", "map", "ratios"]


def made(tensors: int = 60, models: int = 3, hostile: bool = False) -> Geometry:
    """A geometry with layers of several kinds, of which some are frozen and one disagrees."""
    generator = np.random.default_rng(1)
    names, kinds, grams = [], [], []
    for number in range(tensors):
        layer, part = divmod(number, 6)
        kind = ("weight", "weight", "bias", "norm", "embedding", "head")[part]
        names.append(f"layers.{layer}.part{part}.{kind}")
        kinds.append(kind)
        vectors = generator.normal(size=(models + 1, 40)) + 1.0
        vectors[1:] *= 0.03 if number % 17 else 0.0
        if number == 7:
            vectors[1] *= -1.0
        grams.append(vectors @ vectors.T)
    if hostile:
        names[3] = "</script><script>document.title = 'bad'</script><img src=http://example.invalid/x>"
    refs = tuple(f"seed{number}<b>" if hostile else f"seed{number}" for number in range(models))
    return Geometry(
        "base", refs, None, "tensor", tuple(names), tuple(kinds), tuple(f"layers.{n // 6}" for n in range(tensors)),
        ((4, 10),) * tensors, (40,) * tensors, np.stack(grams), ("a warning from the plan",),
    )  # fmt: skip


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The report as a file."""
    path = tmp_path / "report.html"
    path.write_text(geometry_page(made()), "utf-8")
    return path


def test_words_come_first() -> None:
    """Sentences, then warnings, then models and pictures; every figure is there once."""
    text = geometry_page(made())
    places = [text.index(part) for part in ("3 fine-tunes of base", "a warning from the plan", "<svg", "By kind")]
    assert places == sorted(places)
    assert "disagree" in text
    assert "frozen" in text
    assert re.findall(r'<figure id="(\w+)"', text) == FIGURES


def test_the_same_bytes_each_time() -> None:
    """No date, no random name."""
    assert geometry_page(made()) == geometry_page(made())


def test_it_stays_small() -> None:
    """Under 5 MB for a model of 1,000 tensors; a model of 45,000 is drawn by block."""
    assert len(geometry_page(made(1000)).encode()) < 5_000_000
    assert len(geometry_page(made(45_000)).encode()) < 12_000_000


def test_one_model_has_no_angles() -> None:
    """Norms are drawn, nothing else."""
    assert [one.name for one in geometry_pictures(made(models=1))] == ["layers"]
    assert "1 fine-tune of base" in geometry_page(made(models=1))


@needs_browser
def test_a_browser_has_nothing_to_complain_of(page: Path) -> None:
    """No console message, the table filled in. The page's own policy forbids every request, and would be heard."""
    found = visit(page)
    assert found.console == []
    assert len(re.findall("<tr", found.dom.split('id="groups"')[1])) == 61
    assert "60 of 60" in found.dom


ACTIONS = """
<script>
const names = () => [...document.querySelectorAll("#groups tbody tr")].map((row) => row.cells[0].textContent);
const buttons = () => [...document.querySelectorAll("#groups th button")];
const press = (heading) => buttons().find((button) => button.textContent === heading).click();
const said = {};
press("name"); said.up = names().slice(0, 2);
press("name"); said.down = names().slice(0, 2);
press("t"); said.most = names()[0];
press("t"); said.least = names()[0];
const field = document.getElementById("filter");
field.value = "LAYERS.3."; field.dispatchEvent(new Event("input")); said.filtered = names().length;
field.value = ""; field.dispatchEvent(new Event("input"));
const kind = document.getElementById("kind");
kind.value = "bias"; kind.dispatchEvent(new Event("change")); said.biases = names().length;
said.title = document.title;
const out = document.createElement("pre");
out.id = "said"; out.textContent = JSON.stringify(said); document.body.append(out);
</script>
"""


@needs_browser
def test_the_table_sorts_and_filters(tmp_path: Path) -> None:
    """By each press of a heading, by name and by kind, as a reader would; groups without a ratio come last."""
    geometry = made()
    page = tmp_path / "report.html"
    page.write_text(geometry_page(geometry).replace("</body>", ACTIONS + "</body>"), "utf-8")
    said = json.loads(re.findall(r'<pre id="said">(.*?)</pre>', visit(page).dom)[0])
    ordered = sorted(geometry.names)
    assert said["up"] == ordered[:2]
    assert said["down"] == ordered[::-1][:2]
    ratios = [float(f"{t:.6g}") for t in geometry.t]
    assert ratios[geometry.names.index(said["most"])] == np.nanmax(ratios)
    assert ratios[geometry.names.index(said["least"])] == np.nanmin(ratios)
    assert said["filtered"] == 6
    assert said["biases"] == 10


@needs_browser
def test_a_request_would_be_heard(page: Path) -> None:
    """What the test above relies on: a picture from elsewhere is refused, aloud."""
    page.write_text(page.read_text("utf-8").replace("</body>", '<img src="http://127.0.0.1:9/x.png"></body>'), "utf-8")
    found = visit(page)
    assert "Content Security Policy" in " ".join(found.console)


@needs_browser
def test_names_stay_text(tmp_path: Path) -> None:
    """Names of tensors and models that look like markup are shown, not run."""
    page = tmp_path / "report.html"
    page.write_text(geometry_page(made(hostile=True)), "utf-8")
    found = visit(page)
    assert "<title>Geometry of 3 fine-tunes of base</title>" in found.dom
    assert found.console == []
    assert "seed0&lt;b&gt;" in found.dom


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False), (390, True)])
def test_it_is_legible(width: int, dark: bool, page: Path, tmp_path: Path) -> None:
    """Ink on paper: the page is light or dark as asked, and not empty, at a desk's and a phone's width."""
    out = tmp_path / "shot.png"
    screenshot(page, out, width=width, height=1600, dark=dark)
    shot = matplotlib.image.imread(out)[..., :3].mean(axis=2)
    paper = float(np.median(shot))
    assert (paper < 0.3) == dark
    ink = np.abs(shot - paper) > 0.5
    assert 0.005 < ink.mean() < 0.3
    assert ink[:, : int(0.05 * width)].mean() < 0.05
    # Pictures have ink of the page's colour too: axes and letters in the lower half.
    assert ink[800:].mean() > 0.002


def test_figures_for_papers(tmp_path: Path) -> None:
    """PNG, SVG and PDF of each, its data as JSON; the same bytes each time."""
    geometry = made()
    written = [save_pictures(geometry_pictures(geometry), tmp_path / place) for place in ("one", "two")]
    assert [path.name for path in written[0]] == [
        f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg", "pdf", "json")
    ]
    for one, other in zip(*written, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    layers = json.loads((tmp_path / "one" / "layers.json").read_text())
    assert [row["name"] for row in layers["groups"]] == list(geometry.names)
    assert layers["groups"][0]["angle"] is None  # frozen
    assert layers["groups"][1]["t"] == geometry.t[1]
    assert (tmp_path / "one" / "map.pdf").read_bytes().startswith(b"%PDF")
