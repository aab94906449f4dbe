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
    assert found.known == 0  # nothing from before


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
    """``only``: the others are the first model's at every point, both ends included; it is said."""
    seen = []

    def look(weights: dict[str, torch.Tensor]) -> float:
        seen.append(weights["layer.0.bias"].clone())
        return 0.0

    found = barrier(MODELS[:2], look, steps=3, correspondence=Correspondence(only=["weight"]))
    assert [torch.equal(one, MODELS[0]["layer.0.bias"]) for one in seen] == [True, True, True]
    (warning,) = found.warnings
    assert "1 tensors are not mixed (layer.0.bias)" in warning


def test_what_is_left_out_makes_no_barrier() -> None:
    """A score of nothing but the excluded tensor is constant along every line and over the plane."""
    same = Correspondence(exclude=["bias"])

    def look(weights: dict[str, torch.Tensor]) -> float:
        return float(weights["layer.0.bias"].sum())

    for models in (MODELS, MODELS[::-1]):
        assert {
            value for line in barrier(models, look, steps=5, correspondence=same).lines for value in line.values
        } == {float(models[0]["layer.0.bias"].sum())}
        found = landscape(models, look, base=BASE, grid=2, steps=3, correspondence=same)
        assert found.grid is not None
        values = {value for line in found.lines for value in line.values} | set(found.grid.values["score"].ravel())
        assert values == {float(models[0]["layer.0.bias"].sum())}


def test_counters_and_running_statistics_do_not_jump() -> None:
    """What is averaged or counted instead of mixed is the same at the ends and between them."""
    seen = []
    models = [
        {**model, "bn.num_batches_tracked": torch.tensor(n), "bn.running_mean": torch.full((2,), float(n))}
        for n, model in enumerate(MODELS)
    ]

    def look(weights: dict[str, torch.Tensor]) -> float:
        seen.append((int(weights["bn.num_batches_tracked"]), float(weights["bn.running_mean"][0])))
        return 0.0

    barrier(models, look, steps=3)
    assert set(seen) == {(0, 1.0)}


def test_renamed_bases_and_models() -> None:
    """Renames of the base, and of one model by its number, hold in every mixture of some."""
    bowl = Bowl(BOWL_AT)
    plain = landscape(MODELS, bowl, base=BASE, select="loss:min", grid=2, steps=3)
    renamed = {f"x.{name}": tensor for name, tensor in BASE.items()}
    other = {f"y.{name}": tensor for name, tensor in MODELS[1].items()}
    same = Correspondence(rename=["base:^x[.]=", "2:^y[.]="])
    found = landscape(
        [MODELS[0], other, MODELS[2]], bowl, base=renamed, select="loss:min", grid=2, steps=3, correspondence=same
    )
    assert found.data()["points"] == plain.data()["points"]
    assert found.data()["plane"] == plain.data()["plane"]
    lines = barrier([MODELS[0], other], bowl, base=renamed, select="loss:min", correspondence=same).lines
    assert lines[0].barrier[0] == 0.0


def test_models_that_are_no_models() -> None:
    """A string, a module, a path alone: said in words."""
    for models in ("ft1", BASE):
        with pytest.raises(errors.UsageError, match="models are a list"):
            landscape(models, Bowl(BASE), base=BASE)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(errors.UsageError, match=r"neither a path nor a state dict.*got Linear"):
        barrier([torch.nn.Linear(2, 2), BASE], Bowl(BASE))  # type: ignore[list-item]  # that is the point
    with pytest.raises(errors.UsageError, match="merge_state_dicts takes those"):
        stockpot.geometry(base=BASE, models=MODELS)  # type: ignore[arg-type]  # that is the point


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
    assert (runs[0].known, runs[1].evaluated) == (0, 0)
    assert runs[0].evaluated == runs[1].known == begun[0] - 8  # the ends of four lines are marks
    assert begun[0] == begun[1] == len(heard) // 2
