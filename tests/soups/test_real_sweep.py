"""Soups of a real sweep through the command line, killed half-way and resumed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import transformers

import stockpot

from . import _sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> _sweep.Sweep:
    """Twelve fine-tunes of one base."""
    return _sweep.make(tmp_path_factory.mktemp("sweep"))


def command(*words: object) -> list[str]:
    """``stockpot ...`` as a process of its own."""
    return [sys.executable, "-m", "stockpot", *map(str, words)]


def run(cache: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """To its end."""
    env = {**os.environ, "STOCKPOT_CACHE": str(cache)}
    return subprocess.run(command(*words), capture_output=True, text=True, check=False, timeout=280, env=env)


def results(cache: Path) -> list[str]:
    """Labels of what was evaluated so far."""
    try:
        with sqlite3.connect(f"file:{cache}?mode=ro", uri=True) as database:
            return [row[0] for row in database.execute("SELECT label FROM results ORDER BY rowid")]
    except sqlite3.Error:
        return []


def test_greedy_killed_and_resumed(sweep: _sweep.Sweep, tmp_path: Path) -> None:
    """No evaluation is repeated: 12 singles and 11 mixtures, once each, no checkpoint written for them."""
    cache = tmp_path / "cache.sqlite"
    words = [
        "soup", "greedy", *sweep.models, "--evaluate", f"images:{sweep.held_out}", "--select", "accuracy",
        "--out", tmp_path / "soup", "--json", "--html", tmp_path / "soup.html",
    ]  # fmt: skip
    env = {**os.environ, "STOCKPOT_CACHE": str(cache), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(command(*words), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(results(cache)) < 7 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    before = results(cache)
    assert 7 <= len(before) < 23
    assert not (tmp_path / "soup").exists()
    done = subprocess.run(command(*words), capture_output=True, text=True, check=True, timeout=280, env=env)
    found = json.loads(done.stdout)
    assert found["known"] == len(before)
    assert found["evaluated"] + found["known"] == 12 + 11
    assert len(results(cache)) == len(set(results(cache))) == 23
    # No checkpoint was written for a candidate: nothing of ours is left in, or went through, the temporary folder.
    assert list((tmp_path / "tmp").rglob("*.safetensors")) == []
    singles = {one["label"]: one["scores"]["accuracy"] for one in found["candidates"] if one["sort"] == "model"}
    (soup,) = [one for one in found["candidates"] if one["sort"] == "greedy"]
    assert soup["scores"]["accuracy"] >= max(singles.values())
    diverged = str(sweep.models[11])
    assert singles[diverged] < 0.5
    assert diverged not in found["weights"]
    assert len(found["weights"]) > 1
    chosen = [str(model) for model in sweep.models if str(model) in found["weights"]]
    merged = stockpot.merge("linear", models=chosen, out=tmp_path / "merged")
    assert (merged.out / "model.safetensors").read_bytes() == (tmp_path / "soup" / "model.safetensors").read_bytes()
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "soup")
    assert model.config.num_labels == 10
    text = (tmp_path / "soup.html").read_text()
    assert "start with run-" in text
    assert "accepted" in text


def test_a_learned_soup_killed_and_resumed(sweep: _sweep.Sweep, tmp_path: Path) -> None:
    """It goes on where it was, by tensor, and ends better on the held-out loss than the uniform soup."""
    cache = tmp_path / "cache.sqlite"
    words = [
        "soup", "learned", *sweep.models[:6], "--evaluate", f"images:{sweep.held_out}", "--select",
        "loss:min", "--by-layer", "--accumulate", 2, "--epochs", 3, "--seed", 1, "--out", tmp_path / "soup",
        "--test", f"images:{sweep.test}", "--base", sweep.base,
    ]  # fmt: skip
    env = {**os.environ, "STOCKPOT_CACHE": str(cache)}
    process = subprocess.Popen(command(*words), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def has_state() -> bool:
        try:
            with sqlite3.connect(f"file:{cache}?mode=ro", uri=True) as database:
                return bool(database.execute("SELECT count(*) FROM states").fetchone()[0])
        except sqlite3.Error:
            return False

    deadline = time.monotonic() + 120
    while not has_state() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "goes on from here" in err
    done = run(cache, *words, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["notes"][1] == "continued from an earlier run"
    by_sort = {one["sort"]: one for one in found["candidates"]}
    assert by_sort["learned"]["scores"]["loss"] < by_sort["uniform"]["scores"]["loss"]
    assert by_sort["learned"]["tested"]["accuracy"] > 0.9
    assert by_sort["model_stock"]["tested"]
    assert sum(found["weights"].values()) == pytest.approx(1.0)
    assert len(set(found["weights"].values())) == 6
    assert stockpot.verify(tmp_path / "soup", recompute=0.2).problems == ()
    again = run(cache, "merge", tmp_path / "soup" / "stockpot_recipe.yaml", "--out", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    weights = [(tmp_path / place / "model.safetensors").read_bytes() for place in ("soup", "again")]
    assert weights[0] == weights[1]
    straight = run(tmp_path / "other.sqlite", *words[:-6], "--out", tmp_path / "straight", "--json")
    assert straight.returncode == 0, straight.stderr
    assert (tmp_path / "straight" / "model.safetensors").read_bytes() == (
        tmp_path / "soup" / "model.safetensors"
    ).read_bytes()


def test_jobs_and_ensembles(sweep: _sweep.Sweep, tmp_path: Path) -> None:
    """Singles by two processes; an ensemble from the same images, with significance."""
    cache = tmp_path / "cache.sqlite"
    four = sweep.models[:4]
    images = f"images:{sweep.held_out}"
    done = run(
        cache,
        "soup",
        "greedy",
        *four,
        "--evaluate",
        images,
        "--select",
        "accuracy",
        "--jobs",
        2,
        "--out",
        tmp_path / "s",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["known"], found["evaluated"]) == (4, 3)
    done = run(cache, "ensemble", *four, "--evaluate", images, "--base", sweep.base, "--json")
    assert done.returncode == 0, done.stderr
    sorts = [one["sort"] for one in json.loads(done.stdout)["predictors"]]
    assert sorts == ["model"] * 4 + ["ensemble", "greedy_ensemble", "uniform", "model_stock"]
    done = run(
        cache, "wise-ft", sweep.base, four[0], "--evaluate", images, "--select", "accuracy", "--alphas", "0:1:0.25"
    )
    assert done.returncode == 0, done.stderr
    assert "best alpha" in done.stdout
