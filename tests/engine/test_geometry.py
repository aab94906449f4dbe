"""``stockpot.geometry`` against whole tensors in wide floats, and against what geometry itself demands."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.oracles import geometry as oracle

import stockpot
from stockpot import errors
from stockpot.engine import Geometry

State = dict[str, torch.Tensor]
SHAPES = {
    "embed_tokens.weight": (300, 40),
    "layers.0.attn.q_proj.weight": (90, 70),
    "layers.0.attn.q_proj.bias": (90,),
    "layers.0.norm.weight": (90,),
    "layers.1.attn.q_proj.weight": (3, 70_001),
    "layers.1.conv.weight": (8, 4, 3, 3),
    "lm_head.weight": (50, 40),
    "scale": (),
}


def states(models: int, dtype: torch.dtype = torch.float32, step: float = 0.05) -> list[State]:
    """A base and models that share a part of their way."""
    generator = torch.Generator().manual_seed(11)

    def draw() -> State:
        return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}

    base, shared = draw(), draw()
    found = [base]
    for _ in range(models):
        own = draw()
        found.append({name: base[name] + step * (shared[name] + own[name]) for name in base})
    return [{name: value.to(dtype) for name, value in state.items()} for state in found]


def saved(root: Path, made: list[State]) -> list[Path]:
    """As single files: base, m1, m2, ..."""
    paths = []
    for number, state in enumerate(made):
        paths.append(root / f"{'m' + str(number) if number else 'base'}.safetensors")
        save_file(state, paths[-1])
    return paths


def measured(root: Path, made: list[State], **options: Any) -> Geometry:
    """Through files."""
    base, *models = saved(root, made)
    found = stockpot.geometry(base=base, models=models, **options)
    assert isinstance(found, Geometry)
    return found


def test_numbers_of_every_tensor(tmp_path: Path) -> None:
    """Norms, cosines and distances to 1e-10 relative, angles to 1e-10 relative, on float32 inputs."""
    base, *models = made = states(4)
    found = measured(tmp_path, made)
    assert sorted(found.names) == sorted(SHAPES)
    for number, name in enumerate(found.names):
        steps = oracle.task_vectors(base[name], [model[name] for model in models])
        assert found.base_norms[number] == pytest.approx(oracle.norm(oracle.wide(base[name])), rel=1e-10)
        assert found.norms[number] == pytest.approx([oracle.norm(step) for step in steps], rel=1e-10)
        for column, (i, j) in enumerate(found.pairs):
            expected = oracle.angle(steps[i], steps[j])
            assert found.angles[number, column] == pytest.approx(expected, rel=1e-10, abs=1e-7 * (expected < 1.7e-3))
            assert found.cosines[number, column] == pytest.approx(np.cos(expected), rel=1e-10, abs=1e-15)
            assert found.distances[number, column] == pytest.approx(oracle.norm(steps[i] - steps[j]), rel=1e-10)


def test_spreads_and_the_map(tmp_path: Path) -> None:
    """How thick the shell is, how far angles differ, where everything lies: in the record, in JSON and the table."""
    base, *models = made = states(3)
    found = measured(tmp_path, made)
    data = json.loads(json.dumps(found.data(), allow_nan=False))
    for number, name in enumerate(found.names):
        steps = oracle.task_vectors(base[name], [model[name] for model in models])
        norms = [oracle.norm(step) for step in steps]
        angles = [np.degrees(oracle.angle(steps[i], steps[j])) for i, j in found.pairs]
        thick = (max(norms) - min(norms)) / np.mean(norms)
        assert found.norm_spread[number] == pytest.approx(thick, rel=1e-8)
        assert data["groups"][name]["norm_spread"] == found.norm_spread[number]
        assert data["groups"][name]["angle_spread_degrees"] == pytest.approx(max(angles) - min(angles), abs=1e-7)
        assert found.table()["angle_spread_degrees"][number] == data["groups"][name]["angle_spread_degrees"]
    places, shares = found.by("model").coordinates(0)
    assert data["map"]["points"] == {name: place.tolist() for name, place in places.items()}
    assert data["map"]["shares"] == shares.tolist()
    alone = measured(tmp_path, states(1))
    assert np.isnan(alone.angle_spread).all()
    assert (alone.norm_spread == 0).all()


@pytest.mark.parametrize("degrees", [0.11, 0.5, 5.0, 60.0, 90.0, 179.0])
def test_angles_of_all_sizes(degrees: float, tmp_path: Path) -> None:
    """To 1e-10 relative above a tenth of a degree."""
    generator = torch.Generator().manual_seed(3)
    one, other = torch.randn(2, 200_000, generator=generator, dtype=torch.float64)
    other = other - one * (one @ other) / (one @ one)
    other = other * one.norm() / other.norm()
    turned = np.cos(np.radians(degrees)) * one + np.sin(np.radians(degrees)) * other
    made = [{"w": torch.zeros(200_000)}, {"w": one.float()}, {"w": turned.float()}]
    found = measured(tmp_path, made)
    expected = oracle.angle(oracle.wide(made[1]["w"]), oracle.wide(made[2]["w"]))
    assert found.angles[0, 0] == pytest.approx(expected, rel=1e-10)
    assert np.degrees(expected) == pytest.approx(degrees, rel=1e-4)


def test_tiny_angles(tmp_path: Path) -> None:
    """To 1e-7 rad below; equal task vectors have angle 0, opposite ones pi."""
    generator = torch.Generator().manual_seed(4)
    one = torch.randn(100_000, generator=generator)
    made = [{"w": torch.zeros(100_000)}, {"w": one}, {"w": one * (1 + 1e-6)}, {"w": one.clone()}, {"w": -one}]
    found = measured(tmp_path, made)
    steps = oracle.task_vectors(made[0]["w"], [state["w"] for state in made[1:]])
    for column, (i, j) in enumerate(found.pairs):
        assert found.angles[0, column] == pytest.approx(oracle.angle(steps[i], steps[j]), abs=1e-7)
    assert found.angles[0, found.pairs.index((0, 2))] == 0.0


def test_levels_are_sums(tmp_path: Path) -> None:
    """Pythagoras: squares of rows add up to tensors, of tensors to blocks and kinds, of those to the model."""
    made = states(3)
    rows = measured(tmp_path, made, granularity="row")
    tensors = stockpot.geometry(base=tmp_path / "base.safetensors", models=sorted(tmp_path.glob("m*.safetensors")))
    assert rows.by("tensor").names == tensors.names
    assert np.allclose(rows.by("tensor").grams, tensors.grams, rtol=1e-12, atol=1e-12)
    assert rows.names[:2] == (f"{tensors.names[0]}[0]", f"{tensors.names[0]}[1]")
    for level in ("block", "kind", "model"):
        coarse = tensors.by(level)
        assert (coarse.norms**2).sum(axis=0) == pytest.approx((tensors.norms**2).sum(axis=0), rel=1e-12)
        assert sum(coarse.elements) == sum(tensors.elements)
    assert tensors.by("model").names == ("model",)
    assert {"layers.0", "layers.1"} <= set(tensors.by("block").names)
    assert set(tensors.by("kind").names) == {"embedding", "weight", "bias", "norm", "head", "other"}
    with pytest.raises(errors.StockpotError):
        tensors.by("kind").by("tensor")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ratios_are_those_of_a_merge(dtype: torch.dtype, tmp_path: Path) -> None:
    """t of every tensor is what ``merge`` records, to the last bit."""
    found = measured(tmp_path, states(3, dtype))
    base, *models = (tmp_path / "base.safetensors", *sorted(tmp_path.glob("m*.safetensors")))
    stockpot.merge("model_stock", base=base, models=models, out=tmp_path / "out")
    groups = json.loads((tmp_path / "out" / "stockpot.json").read_text())["groups"]
    assert {name: float(t) for name, t in zip(found.names, found.t, strict=True)} == {
        name: group["ratio"] for name, group in groups.items()
    }


def test_points_and_distances(tmp_path: Path) -> None:
    """Distances to the mean, to what Model Stock makes, and to a centre of one's own; coordinates keep distances."""
    made = states(3)
    base, *models = saved(tmp_path, made)
    centre = {name: sum(state[name] for state in made[1:]) / 3 + 0.001 for name in SHAPES}
    save_file(centre, tmp_path / "centre.safetensors")
    found = stockpot.geometry(base=base, models=models, centre=tmp_path / "centre.safetensors")
    merged = stockpot.merge_state_dicts("model_stock", base=made[0], models=made[1:], dtype="float64")
    mean = {name: sum(state[name].double() for state in made[1:]) / 3 for name in SHAPES}
    places = {
        "base": made[0], "mean": mean, "model_stock": merged, "centre": centre,
        **{str(path): state for path, state in zip(models, made[1:], strict=True)},
    }  # fmt: skip
    assert set(found.points) == set(places)
    for number, name in enumerate(found.names):
        for one in places:
            for other in places:
                expected = oracle.norm(oracle.wide(places[one][name]) - oracle.wide(places[other][name]))
                size = float(found.norms[number].max())
                assert found.distance(one, other)[number] == pytest.approx(expected, rel=1e-6, abs=1e-7 * size)
        ours, shares = found.coordinates(number)
        theirs = oracle.principal_coordinates([oracle.wide(places[point][name]) for point in ours], 2)
        size = float(found.norms[number].max())
        for axis in range(min(2, theirs.shape[1])):
            own = np.array([place[axis] for place in ours.values()])
            sign = np.sign(own @ theirs[:, axis]) or 1.0
            assert own == pytest.approx(sign * theirs[:, axis], abs=1e-7 * size)
        assert 0.0 <= shares.sum() <= 1.0 + 1e-12


def test_the_gaussian_toy(tmp_path: Path) -> None:
    """Models around a centre at distance r from the base: the cosines and ratios that the paper's picture predicts."""
    size, models = 10_000, 4
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(size, generator=generator, dtype=torch.float64)
    centre = centre / centre.norm()
    noise = torch.randn(models, size, generator=generator, dtype=torch.float64) / size**0.5
    made = [{"w": torch.zeros(size)}, *({"w": (centre + own).float()} for own in noise)]
    base, *paths = saved(tmp_path, made)
    save_file({"w": centre.float()}, tmp_path / "centre.safetensors")
    found = stockpot.geometry(base=base, models=paths, centre=tmp_path / "centre.safetensors")
    assert found.cosines == pytest.approx(0.5, abs=5 * 0.007)
    assert found.t[0] == pytest.approx(0.8, abs=0.02)
    assert found.distance("mean", "centre")[0] == pytest.approx(0.5, abs=0.02)
    assert found.distance("model_stock", "centre")[0] == pytest.approx(0.447, abs=0.02)
    assert found.distance(str(paths[0]), "centre")[0] == pytest.approx(1.0, abs=0.02)


def test_one_model_still_has_norms(tmp_path: Path) -> None:
    """No angle, no ratio; null in JSON."""
    found = measured(tmp_path, states(1))
    assert found.cosines.shape == (len(SHAPES), 0)
    assert np.isnan(found.t).all()
    entry = found.data()["total"]
    assert isinstance(entry, dict)
    assert entry["t"] is None
    assert entry["norms"][0] > 0


def test_nothing_is_written_and_each_input_is_read_once(tmp_path: Path) -> None:
    """Only the inputs are there afterwards."""
    measured(tmp_path, states(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "m1.safetensors", "m2.safetensors"]


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    """By tensor and file, in small tensors and in large ones."""
    for name in ("layers.0.norm.weight", "layers.1.attn.q_proj.weight"):
        made = states(2)
        made[2][name].view(-1)[7] = float("nan")
        with pytest.raises(errors.NonFiniteError) as caught:
            measured(tmp_path, made)
        assert caught.value.tensor == name
        assert "m2" in str(caught.value)


def test_what_a_merge_measured_is_not_measured_again(tmp_path: Path) -> None:
    """The same arrays, to the last bit, without a look at the weights; from changed inputs or records a fresh look."""
    base, *models = saved(tmp_path, states(3))
    out = tmp_path / "out"
    stockpot.merge("model_stock", base=base, models=models, out=out)
    fresh = stockpot.geometry(base=base, models=models)
    seen: list[int] = []

    def told(done: int, total: int) -> None:
        seen.append(total)

    again = stockpot.geometry(base=base, models=models, stored=out, progress=told)
    assert seen == []
    assert np.array_equal(again.grams, fresh.grams)
    assert again.names == fresh.names
    assert again.warnings == fresh.warnings
    turned = stockpot.geometry(base=base, models=models[::-1], stored=out)
    assert any("other inputs" in warning for warning in turned.warnings)
    assert np.array_equal(turned.grams[:, 1, 1], fresh.grams[:, 3, 3])
    (out / "stockpot_geometry.safetensors").write_bytes(b"x" + (out / "stockpot_geometry.safetensors").read_bytes()[1:])
    assert any("not those" in w for w in stockpot.geometry(base=base, models=models, stored=out).warnings)
    with pytest.raises(errors.NotFoundError, match="stockpot_geometry"):
        stockpot.geometry(base=base, models=models, stored=tmp_path)


@pytest.mark.parametrize("name", ["stockpot.json", "stockpot_run.json", "SHA256SUMS"])
def test_a_pipe_in_place_of_a_record(name: str, tmp_path: Path) -> None:
    """It is no record, and nobody waits for it."""
    base, *models = saved(tmp_path, states(2))
    out = stockpot.merge("model_stock", base=base, models=models, out=tmp_path / "out").out
    (out / name).unlink()
    os.mkfifo(out / name)
    found = stockpot.geometry(base=base, models=models, stored=out)
    assert any("its records cannot be read" in warning for warning in found.warnings)


def test_products_of_models_themselves_are_no_geometry(tmp_path: Path) -> None:
    """What ``slerp`` measured of the same two files is not taken for task vectors."""
    base, model = saved(tmp_path, states(1))
    out = tmp_path / "out"
    stockpot.merge("slerp", base=base, models=[model], parameters={"t": 0.5}, out=out)
    found = stockpot.geometry(base=base, models=[model], stored=out)
    assert any("slerp measured the models themselves" in warning for warning in found.warnings)
    assert np.array_equal(found.grams, stockpot.geometry(base=base, models=[model]).grams)


def test_models_named_as_points_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models whose names are ``mean`` or one another's are points of their own, told apart by their numbers."""
    made = states(3)
    saved(tmp_path, made)
    monkeypatch.chdir(tmp_path)
    Path("mean").mkdir()
    Path("m1.safetensors").rename("mean/model.safetensors")
    found = stockpot.geometry(base="base.safetensors", models=["mean", "m2.safetensors", "m2.safetensors"])
    assert list(found.points) == ["base", "mean (1)", "m2.safetensors", "m2.safetensors (3)", "mean", "model_stock"]
    assert found.distance("mean (1)", "base") == pytest.approx(found.norms[:, 0], rel=1e-12)
    assert (found.distance("m2.safetensors", "m2.safetensors (3)") == 0).all()
