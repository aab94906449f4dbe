"""Small tensors are worked on together; nothing in the result shows it."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import stockpot
from stockpot import errors
from stockpot.engine._schedule import Small, make_tasks

from ._checkpoints import folder

State = dict[str, torch.Tensor]
DTYPES = (torch.bfloat16, torch.float32, torch.float16)


def states() -> list[State]:
    """A base and three fine-tunes of 900 tensors of odd sizes; neighbours change their dtype now and then."""
    found: list[State] = []
    for model in range(4):
        state = {}
        for number in range(900):
            generator = torch.Generator().manual_seed(number)
            base = torch.randn(1 + number * 7 % 1500, generator=generator)
            shared = torch.randn(base.shape, generator=generator)
            own = torch.randn(base.shape, generator=torch.Generator().manual_seed(1000 * model + number))
            value = base + (0.02 * (shared + own) if model else 0.0)
            state[f"t{number:04d}"] = value.to(DTYPES[number // 100 % 3])
        found.append(state)
    return found


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same as folders of three shards, with the names dealt out, so that neighbours lie in different files."""
    root = tmp_path_factory.mktemp("small")
    made = []
    for model, state in enumerate(states()):
        shards = [{name: state[name] for name in sorted(state)[start::3]} for start in range(3)]
        made.append(folder(root / f"m{model}", *shards))
    return made


def test_they_are_taken_together(paths: list[Path], tmp_path: Path) -> None:
    """A few tasks instead of 900, each of tensors of one kind."""
    models = [{"model": str(path)} for path in paths[1:]]
    recipe = {"merge_method": "model_stock", "base_model": str(paths[0]), "models": models}
    plan = stockpot.plan(stockpot.Recipe.model_validate(recipe), out=tmp_path / "out")
    tasks = make_tasks(plan, frozenset(), frozenset())
    assert all(isinstance(task, Small) for task in tasks)
    assert len(tasks) < 40
    for task in tasks:
        assert isinstance(task, Small)
        assert len({plan.slots[number].dtype for number in task.slots}) == 1


@pytest.mark.parametrize(("method", "parameters"), [("model_stock", {}), ("linear", {"weight": (0.3, 0.3, 0.4)})])
def test_each_has_the_bits_it_has_alone(
    method: str, parameters: dict[str, object], paths: list[Path], tmp_path: Path
) -> None:
    """From shards to shards, against each tensor merged alone in memory; ``verify --recompute`` agrees."""
    stockpot.merge(method, base=paths[0], models=paths[1:], out=tmp_path / "out", parameters=parameters)
    merged: State = {}
    for file in (tmp_path / "out").glob("model-*.safetensors"):
        merged |= load_file(file)
    base, *models = states()
    assert merged.keys() == base.keys()
    for name in sorted(base)[::17]:
        alone = stockpot.merge_state_dicts(
            method,
            base={name: base[name]} if method == "model_stock" else None,
            models=[{name: model[name]} for model in models],
            parameters=parameters,
        )
        assert torch.equal(merged[name].view(torch.uint8), alone[name].view(torch.uint8)), name
    assert stockpot.verify(tmp_path / "out", recompute=1.0).problems == ()


def test_one_that_is_not_finite_is_named(paths: list[Path], tmp_path: Path) -> None:
    """A NaN amid hundreds is refused with tensor, file and index."""
    bad = states()[3]
    bad["t0450"][11] = float("nan")
    names = sorted(bad)
    last = folder(tmp_path / "bad", *[{name: bad[name] for name in names[start::3]} for start in range(3)])
    with pytest.raises(errors.NonFiniteError, match=r"t0450.*m?odel-00001-of-00003.*\[11\]|\[11\].*t0450") as caught:
        stockpot.merge("model_stock", base=paths[0], models=[*paths[1:3], last], out=tmp_path / "out")
    assert caught.value.tensor == "t0450"


def test_one_that_overflows_is_named(tmp_path: Path) -> None:
    """A sum beyond float16's largest number amid others."""
    base = {f"t{number}": torch.zeros(20, dtype=torch.float16) for number in range(30)}
    model = {name: torch.full((20,), 49152.0 if name == "t7" else 1.0, dtype=torch.float16) for name in base}
    with pytest.raises(errors.NonFiniteError, match="does not fit float16") as caught:
        stockpot.merge_state_dicts("task_arithmetic", base=base, models=[model, model])
    assert caught.value.tensor == "t7"
    merged = stockpot.merge_state_dicts(
        "task_arithmetic", base=base, models=[model, model], parameters={"weight": (0.5, 0.25)}
    )
    assert merged["t7"].tolist() == [36864.0] * 20


def test_more_models_than_are_seen_in_place(tmp_path: Path) -> None:
    """Beyond some number inputs are read into buffers: the same bits as from state dicts, one tensor at a time."""
    made: list[State] = []
    for model in range(36):
        generator = torch.Generator().manual_seed(model)
        made.append({name: 1.0 + 0.1 * torch.randn(40, generator=generator) for name in ("a", "b", "c")})
        folder(tmp_path / f"m{model}", made[-1])
    base, *models = [tmp_path / f"m{model}" for model in range(36)]
    stockpot.merge("model_stock", base=base, models=models, out=tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name in merged:
        alone = stockpot.merge_state_dicts(
            "model_stock", base={name: made[0][name]}, models=[{name: state[name]} for state in made[1:]]
        )
        assert torch.equal(merged[name], alone[name])


def test_more_shards_than_are_kept_open(tmp_path: Path) -> None:
    """Neighbours in 300 files: a file that has left the pool stays mapped while its tensors are worked on."""
    names = [f"t{number:03d}" for number in range(300)]
    made: list[State] = []
    for model in range(3):
        generator = torch.Generator().manual_seed(model)
        made.append({name: 1.0 + 0.1 * torch.randn(500, generator=generator) for name in names})
        folder(tmp_path / f"m{model}", *[{name: made[-1][name]} for name in names])
    base, *models = [tmp_path / f"m{model}" for model in range(3)]
    stockpot.merge("model_stock", base=base, models=models, out=tmp_path / "out.safetensors")
    merged = load_file(tmp_path / "out.safetensors")
    expected = stockpot.merge_state_dicts("model_stock", base=made[0], models=made[1:])
    assert all(torch.equal(merged[name], expected[name]) for name in names)


def test_nothing_stays_open(paths: list[Path], tmp_path: Path) -> None:
    """Merges and measurements leave no descriptor and no mapping behind, while their plans are still there too."""

    root = str(paths[0].parent)

    def left() -> tuple[int, int]:
        links = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]
        return sum(link.startswith(root) for link in links), Path("/proc/self/maps").read_text().count(root)

    gc.collect()  # what the errors of other tests hold
    models = [{"model": str(path)} for path in paths[1:]]
    recipe = {"merge_method": "model_stock", "base_model": str(paths[0]), "models": models}
    plan = stockpot.plan(stockpot.Recipe.model_validate(recipe), out=tmp_path / "planned")
    for number in range(3):
        stockpot.merge("model_stock", base=paths[0], models=paths[1:], out=tmp_path / f"out{number}")
        kept = stockpot.geometry(base=paths[0], models=paths[1:])
        assert left() == (0, 0)
    assert plan.slots
    assert kept.names


def test_inner_products_alone_and_together(tmp_path: Path) -> None:
    """A model that did not move has inner products of zero, the same bytes whatever else is in the checkpoint."""
    weights = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([3.0, -1.0])}
    moved = {name: tensor + torch.tensor([0.5, 0.25]) for name, tensor in weights.items()}
    base, *models = (folder(tmp_path / name, state) for name, state in (("o", weights), ("p", weights), ("q", moved)))
    for out, only in (("alone", ["^a$"]), ("both", [])):
        stockpot.merge("model_stock", base=base, models=models, out=tmp_path / out, only=only)
    alone, both = (load_file(tmp_path / out / "stockpot_geometry.safetensors")["a"] for out in ("alone", "both"))
    assert alone.numpy().tobytes() == both.numpy().tobytes()
