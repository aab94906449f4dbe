"""Landscapes and barriers against closed forms in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import stockpot
from stockpot import errors
from stockpot.soups import Correspondence, Running, barrier, landscape

from ._bowl import Bowl, double_well, flat, state

BASE = state(0)
MODELS = [state(number, BASE, 0.1) for number in (1, 2, 3)]
BOWL_AT = state(9, BASE, 0.05)


@pytest.mark.parametrize("through", [None, (1, 2, 3), (2, 0, 3)])
def test_the_plane(through: tuple[int, int, int] | None) -> None:
    """Every point of the grid is p + x u1 + y u2 with the paper's basis, and scored there."""
    bowl = Bowl(BOWL_AT)
    found = landscape(MODELS, bowl, base=BASE, select="loss:min", grid=4, steps=3, through=through)
    points = [flat(one) for one in (BASE, *MODELS)]
    p, q, r = (points[number] for number in through or (0, 1, 2))
    one = (q - p) / np.linalg.norm(q - p)
    two = (r - p) - ((r - p) @ one) * one
    two /= np.linalg.norm(two)
    assert found.grid is not None
    for row, y in enumerate(found.grid.ys):
        for column, x in enumerate(found.grid.xs):
            expected = bowl.at(p + x * one + y * two)
            assert found.grid.values["loss"][row, column] == pytest.approx(expected, rel=1e-9)
            assert found.grid.values["gain"][row, column] == -found.grid.values["loss"][row, column]
    xs = [float((point - p) @ one) for point in points]
    assert found.grid.xs[0] < min(xs)
    assert found.grid.xs[-1] > max(xs)


def test_the_marks() -> None:
    """Base, fine-tunes, mean, Model Stock's own merge, centre: each at its foot, with its own score."""
    bowl = Bowl(BOWL_AT)
    found = landscape(MODELS, bowl, base=BASE, select="loss:min", grid=2, steps=3)
    stock = stockpot.merge_state_dicts("model_stock", base=BASE, models=MODELS)
    mean = stockpot.merge_state_dicts("linear", models=MODELS)
    points = [BASE, *MODELS, mean, stock]
    assert [mark.sort for mark in found.marks] == ["base", "model", "model", "model", "mean", "model_stock"]
    w0, one = flat(BASE), flat(MODELS[0]) - flat(BASE)
    length = np.linalg.norm(one)
    two = flat(MODELS[1]) - w0
    two = two - (two @ one) / length**2 * one
    two /= np.linalg.norm(two)
    for mark, point in zip(found.marks, points, strict=True):
        step = flat(point) - w0
        assert mark.scores["loss"] == pytest.approx(bowl.at(flat(point)), rel=1e-12)
        assert mark.x == pytest.approx(float(step @ one / length), abs=1e-9)
        assert mark.y == pytest.approx(float(step @ two), abs=1e-9)
        rest = step - (step @ one / length**2) * one - (step @ two) * two
        # Roots of what rounding leaves of squares.
        assert mark.off == pytest.approx(float(np.linalg.norm(rest)), abs=1e-7)


def test_the_lines() -> None:
    """The plane's edges and base to mean, each at its places: a parabola with its ends."""
    bowl = Bowl(BOWL_AT)
    found = landscape(MODELS, bowl, base=BASE, select="loss:min", grid=0, steps=5)
    assert found.grid is None
    mean = sum(flat(model) for model in MODELS) / 3
    w0, w1, w2 = flat(BASE), flat(MODELS[0]), flat(MODELS[1])
    for line, (start, end) in zip(found.lines, [(w0, w1), (w0, w2), (w1, w2), (w0, mean)], strict=True):
        assert line.places == (0.0, 0.25, 0.5, 0.75, 1.0)
        expected = [bowl.at((1 - place) * start + place * end) for place in line.places]
        assert line.values == pytest.approx(expected, rel=1e-9)
    d1, d2 = w1 - w0, w2 - w0
    angle = math.acos(d1 @ d2 / np.linalg.norm(d1) / np.linalg.norm(d2))
    assert [line.angle for line in found.lines] == [None, None, pytest.approx(angle, rel=1e-9), None]


@pytest.mark.parametrize(("select", "sign"), [("error:min", 1.0), ("goodness", -1.0)])
def test_a_barrier_of_known_height(select: str, sign: float) -> None:
    """16 a^2 (1 - a)^2 is 1 high half-way, whichever way the number counts; the middle's advantage is minus that."""
    error = double_well(MODELS[0], MODELS[1])
    name = select.split(":")[0]
    found = barrier(MODELS[:2], lambda weights: {name: sign * error(weights)}, base=BASE, select=select, steps=5)
    (line,) = found.lines
    assert line.barrier == (pytest.approx(1.0, abs=1e-6), 0.5)
    assert line.advantage == pytest.approx(-1.0, abs=1e-6)
    assert line.data()["barrier"] == pytest.approx(1.0, abs=1e-6)


def test_a_convex_loss_has_no_barrier() -> None:
    """All pairs; the middle is better by a quarter of the squared distance, exactly."""
    bowl = Bowl(BOWL_AT)
    found = barrier(MODELS, bowl, select="loss:min", steps=3)
    assert [(line.start, line.end) for line in found.lines] == [
        ("model 1", "model 2"), ("model 1", "model 3"), ("model 2", "model 3"),
    ]  # fmt: skip
    for line, (i, j) in zip(found.lines, [(0, 1), (0, 2), (1, 2)], strict=True):
        assert line.barrier == (0.0, 0.0)
        apart = ((flat(MODELS[i]) - flat(MODELS[j])) ** 2).sum()
        assert line.advantage == pytest.approx(apart / 4, rel=1e-9)
        assert line.angle is None
    assert found.evaluated == bowl.asked == 3 + 3  # the models once, three middles
    assert found.known == 3


def test_one_fine_tune_has_a_line() -> None:
    """No plane, no mean, no Model Stock."""
    found = landscape(MODELS[:1], Bowl(BOWL_AT), base=BASE, select="loss:min", steps=3)
    assert found.grid is None
    assert [mark.sort for mark in found.marks] == ["base", "model"]
    assert len(found.lines) == 1


def test_a_centre_is_marked(tmp_path: Path) -> None:
    """A checkpoint on disk beside models in memory."""
    from safetensors.torch import save_file

    middle = {name: sum(model[name] for model in MODELS) / 3 for name in BASE}
    save_file(middle, tmp_path / "centre.safetensors")
    bowl = Bowl(BOWL_AT)
    centre = str(tmp_path / "centre.safetensors")
    found = landscape(MODELS, bowl, base=BASE, centre=centre, select="loss:min", grid=2, steps=3)
    mean, mark = found.marks[-3], found.marks[-1]
    assert (mark.sort, mark.name) == ("centre", centre)
    assert mark.scores["loss"] == pytest.approx(bowl.at(flat(middle)), rel=1e-12)
    assert (mark.x, mark.y) == (pytest.approx(mean.x, abs=1e-9), pytest.approx(mean.y, abs=1e-9))


def test_what_cannot_be_drawn() -> None:
    """Three on one line; numbers that make no sense; each before anything is evaluated."""
    bowl = Bowl(BOWL_AT)
    on_line = {name: 2 * MODELS[0][name] - BASE[name] for name in BASE}
    with pytest.raises(errors.MethodError, match=r"three checkpoints on one line.*--plane"):
        landscape([MODELS[0], on_line], bowl, base=BASE, select="loss:min")
    for wrong in (
        {"grid": 1},
        {"grid": -2},
        {"margin": -0.1},
        {"steps": 4},
        {"steps": 1},
        {"through": (0, 1, 7)},
        {"through": (1, 1, 2)},
    ):
        with pytest.raises(errors.ParameterError):
            landscape(MODELS, bowl, base=BASE, select="loss:min", **wrong)  # type: ignore[arg-type]  # values of several types
    with pytest.raises(errors.UsageError, match="two models or more"):
        barrier(MODELS[:1], bowl)
    with pytest.raises(errors.UsageError, match="no models"):
        landscape([], bowl, base=BASE)
    assert bowl.asked == 0


def test_selected_tensors_alone_move() -> None:
    """``only``: the others are the template's at every point."""
    seen = []

    def look(weights: dict[str, torch.Tensor]) -> float:
        seen.append(weights["layer.0.bias"].clone())
        return 0.0

    barrier(MODELS[:2], look, steps=3, correspondence=Correspondence(only=["weight"]))
    # A model alone is itself; of a mixture, the first one's bias is taken.
    assert [torch.equal(one, MODELS[0]["layer.0.bias"]) for one in seen] == [True, False, True]


def test_infinite_scores_are_data() -> None:
    """A corner where the model diverges: null in JSON, no failure."""
    found = landscape(MODELS[:2], lambda weights: math.inf, base=BASE, select=":min", grid=2, steps=3)
    assert found.data()["plane"]["values"]["score"] == [[None, None], [None, None]]  # type: ignore[index]  # plain data


def test_results_are_kept_and_told(tmp_path: Path) -> None:
    """With a cache and an evaluator of known content, a second call evaluates nothing."""
    (tmp_path / "judge.py").write_text(
        "def norm(weights): return float(sum((w.double() ** 2).sum() for w in weights.values()))\n"
    )
    heard: list[bool] = []
    begun: list[int] = []
    running = Running(tmp_path / "cache", begun=begun.append, heard=lambda found: heard.append(found.was_known))
    runs = [
        landscape(MODELS, f"{tmp_path}/judge.py:norm", base=BASE, grid=3, steps=3, running=running) for _ in range(2)
    ]
    assert runs[0].data() | {"evaluated": 0, "known": 0} == runs[1].data() | {"evaluated": 0, "known": 0}
    assert (runs[0].known, runs[1].evaluated) == (8, 0)  # the ends of four lines were marked before
    assert runs[0].evaluated + runs[0].known == runs[1].known == begun[0] == begun[1] == len(heard) // 2
