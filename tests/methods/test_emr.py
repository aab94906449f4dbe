"""EMR-Merging against its oracle: the unified model, masks and scales beside it, and each task's model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.cli._kitchen import Program
from tests.oracles import emr as oracle
from tests.oracles.exact import numbers

import stockpot
from stockpot import errors
from stockpot.engine._job import resolve
from stockpot.recipe import Recipe

SHAPES = {"a.weight": (300, 301), "a.bias": (13,), "scale": (), "none": (0, 3)}
BESIDE = "stockpot_emr.safetensors"
State = dict[str, torch.Tensor]


def drawn(count: int, dtype: torch.dtype = torch.float32) -> list[State]:
    """A base and models around it, a fifth of their elements as in the base."""
    generator = torch.Generator().manual_seed(3)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    found = [{name: one.to(dtype) for name, one in base.items()}]
    for _ in range(count):
        moved = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        stays = {name: torch.rand(shape, generator=generator) < 0.2 for name, shape in SHAPES.items()}
        found.append({name: (base[name] + torch.where(stays[name], 0.0, moved[name])).to(dtype) for name in base})
    return found


def folders(root: Path, states: list[State]) -> list[Path]:
    """One folder for each, the base first."""
    found = []
    for number, state in enumerate(states):
        folder = root / ("base" if not number else f"task{number}")
        folder.mkdir()
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text("{}", "utf-8")
        found.append(folder)
    return found


def near(found: torch.Tensor, want: np.ndarray, dtype: torch.dtype) -> bool:
    """Rounded once, as far as float64 sums of scales tell."""
    unit = 2.0 ** {torch.float32: -24, torch.bfloat16: -8, torch.float64: -50}[dtype]
    return bool((np.abs(numbers(found) - want) <= unit * np.abs(want) * (1 + 1e-9) + 1e-15).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_in_memory(count: int, dtype: torch.dtype) -> None:
    """Unified model and each task's."""
    base, *models = drawn(count, dtype)
    unified, _, _, tasks = oracle.emr(base, models)
    found = stockpot.merge_state_dicts("emr", base=base, models=models)
    assert all(near(found[name], unified[name], dtype) for name in base)
    for number, want in enumerate(tasks, start=1):
        found = stockpot.merge_state_dicts("emr", base=base, models=models, parameters={"task": number})
        assert all(near(found[name], want[name], dtype) for name in base), number


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("parameters", [{}, {"task": 1}])
def test_one_task_is_exact(parameters: dict[str, Any], dtype: torch.dtype) -> None:
    """The fine-tune's bits, also where no float64 holds its difference from the base."""
    base, model = drawn(1, dtype)
    base["a.bias"][:3] = torch.tensor([1e30, -1e30, 1.0]).to(dtype)
    model["a.bias"][:3] = torch.tensor([1e-30, -3.0, 1e-30]).to(dtype)
    found = stockpot.merge_state_dicts("emr", base=base, models=[model], parameters=parameters)
    assert all(torch.equal(found[name], model[name]) for name in base)


def test_masks_and_scales_lie_beside(tmp_path: Path) -> None:
    """By the format's own library; a task's model comes of base, unified model, mask and scale, as the page says."""
    base, *models = drawn(3)
    refs = folders(tmp_path, [base, *models])
    out = stockpot.merge("emr", base=refs[0], models=refs[1:], out=tmp_path / "out").out
    unified, masks, scales, tasks = oracle.emr(base, models)
    merged, beside = load_file(out / "model.safetensors"), load_file(out / BESIDE)
    assert set(beside) == {"scales", *(f"mask.{name}" for name in base if base[name].numel())}
    assert beside["scales"].tolist() == pytest.approx(scales, rel=1e-13)
    with safe_open(out / BESIDE, "pt") as file:
        assert json.loads(file.metadata()["tasks"]) == [str(ref) for ref in refs[1:]]
    for name in base:
        assert near(merged[name], unified[name], torch.float32)
        if not base[name].numel():
            continue
        bits = np.unpackbits(beside[f"mask.{name}"].numpy(), axis=1, bitorder="little")[:, : base[name].numel()]
        assert np.array_equal(bits.astype(bool), [mask[name] for mask in masks])
        for scale, mask, want in zip(beside["scales"].numpy(), bits, tasks, strict=True):
            start = numbers(base[name])
            made = start + scale * mask * (numbers(merged[name]) - start)
            assert np.abs(made - want[name]).max() <= 1e-6 * np.abs(want[name]).max()
    assert stockpot.verify(out, recompute=1.0).problems == ()


def test_a_damaged_mask_is_found(tmp_path: Path) -> None:
    """By the sums; and by deriving it anew, where somebody mended the sums."""
    base, *models = drawn(2)
    refs = folders(tmp_path, [base, *models])
    out = stockpot.merge("emr", base=refs[0], models=refs[1:], out=tmp_path / "out").out
    content = bytearray((out / BESIDE).read_bytes())
    content[-5] ^= 1
    (out / BESIDE).write_bytes(content)
    assert any(BESIDE in line for line in stockpot.verify(out).problems)
    from stockpot.engine._sums import file_sum, read_sums, sums

    listed, _ = read_sums((out / "SHA256SUMS").read_bytes())
    (out / "SHA256SUMS").write_bytes(sums({}, listed | {BESIDE: file_sum(out / BESIDE)}))
    assert stockpot.verify(out).problems == ()
    assert any(BESIDE in line for line in stockpot.verify(out, recompute=1.0).problems)


def test_pieces_and_workers_change_no_byte(tmp_path: Path) -> None:
    """Of masks and scales neither, nor of a task's model; an interrupted run goes on to the same bytes."""
    base, *models = drawn(3)
    large = torch.Generator().manual_seed(1)
    for state in (base, *models):
        state["large"] = torch.randn(1500, 1000, generator=large)
    refs = folders(tmp_path, [base, *models])
    given: dict[str, Any] = {"base": refs[0], "models": refs[1:]}
    for parameters in ({}, {"task": 2}):
        contents = []
        for workers, memory in ((1, "32MiB"), (2, "1GiB")):
            out = tmp_path / f"{workers}{len(parameters)}"
            stockpot.merge("emr", out=out, workers=workers, memory=memory, parameters=parameters, **given)
            contents.append([path.read_bytes() for path in sorted(out.glob("*.safetensors"))])
        assert contents[0] == contents[1]
        assert len(contents[0]) == 2 - len(parameters)

        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        out = tmp_path / f"resumed{len(parameters)}"
        with pytest.raises(KeyboardInterrupt):
            stockpot.merge("emr", out=out, parameters=parameters, progress=stop, **given)
        assert not out.exists()
        stockpot.merge("emr", out=out, parameters=parameters, **given)
        assert [path.read_bytes() for path in sorted(out.glob("*.safetensors"))] == contents[0]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A task by number, by the path as typed, and by its last part."""
    program = Program(capsys, tmp_path)
    refs = folders(tmp_path, drawn(2))
    words = ["merge", "--method", "emr", "--base", refs[0], refs[1], refs[2], "--quiet", "--out"]
    program.does(*words, tmp_path / "all")
    assert (tmp_path / "all" / BESIDE).is_file()
    files = []
    for number, name in enumerate(("2", str(refs[2]), "task2")):
        out = tmp_path / f"one{number}"
        program.does(*words, out, "--set", f"task={name}")
        assert not (out / BESIDE).exists()
        assert stockpot.verify(out, recompute=1.0).problems == ()
        files.append((out / "model.safetensors").read_bytes())
    assert files[0] == files[1] == files[2]
    wrong = (
        ("task=task9", "unknown_name", "task2"),
        ("task=3", "unknown_name", "'3'"),
        ("task=0", "unknown_name", "'0'"),
    )
    for text, kind, says in wrong:
        program.refuses(*words, tmp_path / "wrong", "--set", text, kind=kind, says=[says])
    program.refuses(*words, tmp_path / "one.safetensors", kind="output", says=["a file beside the model"])
    program.does(*words, tmp_path / "one.safetensors", "--set", "task=1")


def test_outvoted_and_unmoved_tasks() -> None:
    """A task that is outvoted everywhere has scale 0, its model is the base; one that never moved has scale 1."""
    base = {"w": torch.zeros(4)}
    models = [{"w": torch.full((4,), 3.0)}, {"w": torch.full((4,), -1.0)}, {"w": torch.zeros(4)}]
    made = [
        stockpot.merge_state_dicts("emr", base=base, models=models, parameters={"task": number})["w"].tolist()
        for number in (1, 2, 3)
    ]
    assert made == [[3.0] * 4, [0.0] * 4, [0.0] * 4]


def test_real_models(tmp_path: Path) -> None:
    """Unified and task models load and answer; a task is nearer to its fine-tune than the unified model is."""
    from tests.evaluate import _zoo as zoo

    refs = [zoo.bert(tmp_path / f"m{number}") for number in range(4)]
    plain = zoo.weights_of(refs[0])
    for number, ref in enumerate(refs[1:]):
        noise = torch.Generator().manual_seed(number)
        moved = {name: one + 0.2 * torch.randn(one.shape, generator=noise) for name, one in plain.items()}
        save_file(moved, ref / "model.safetensors", {"format": "pt"})

    def answers(folder: Path) -> torch.Tensor:
        net = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            found = net(input_ids=torch.arange(4, 14)[None]).logits
        assert isinstance(found, torch.Tensor)
        return found

    given: dict[str, Any] = {"base": refs[0], "models": refs[1:]}
    assert torch.isfinite(answers(stockpot.merge("emr", out=tmp_path / "all", **given).out)).all()
    for number in (1, 2, 3):
        task = stockpot.merge("emr", out=tmp_path / f"task{number}", parameters={"task": number}, **given).out
        assert torch.isfinite(answers(task)).all()
        assert load_file(task / "model.safetensors").keys() == plain.keys()
        fine_tune = zoo.weights_of(refs[number])
        made = [zoo.weights_of(one) for one in (task, tmp_path / "all")]
        gaps = [sum(float((own[name] - fine_tune[name]).square().sum()) for name in plain) for own in made]
        assert gaps[0] < gaps[1]


def test_nan_is_refused_by_name() -> None:
    """In the look at all tensors as in the making."""
    base, *models = drawn(2)
    models[1]["a.bias"][5] = float("nan")
    for parameters in ({}, {"task": 1}):
        with pytest.raises(errors.NonFiniteError, match=r"a\.bias") as caught:
            stockpot.merge_state_dicts("emr", base=base, models=models, parameters=parameters)
        assert "[5]" in caught.value.what


@pytest.mark.parametrize("parameters", [{"task": [1, 2]}, {"task": {"filter": "bias", "value": 1}}, {}])
def test_a_task_of_some_tensors_is_refused(parameters: dict[str, Any]) -> None:
    """By layer, by filter or by override: before anything is opened."""
    data: dict[str, Any] = {
        "merge_method": "emr",
        "base_model": "none/base",
        "models": [{"model": "none/a"}, {"model": "none/b"}],
        "parameters": parameters,
    }
    if not parameters:
        data["overrides"] = [{"match": "bias", "parameters": {"task": 1}}]
    with pytest.raises(errors.UsageError, match="task of emr is one for all tensors"):
        resolve(Recipe.from_data(data), from_file=True)


@pytest.mark.parametrize("parameters", [{}, {"task": 1}])
def test_both_passes_are_counted_and_shown(parameters: dict[str, Any], tmp_path: Path) -> None:
    """What is read is what the plan says, twice the inputs; progress goes up to its end through both passes."""
    states = drawn(2)
    refs = folders(tmp_path, states)
    given: dict[str, Any] = {"base": refs[0], "models": refs[1:], "parameters": parameters}
    told: list[tuple[int, int]] = []
    out = tmp_path / "out"
    result = stockpot.merge("emr", out=out, progress=lambda done, total: told.append((done, total)), **given)
    size = sum(one.nbytes for state in states for one in state.values())
    models = [{"model": str(ref)} for ref in refs[1:]]
    recipe = {"merge_method": "emr", "base_model": str(refs[0]), "models": models, "parameters": parameters}
    planned = stockpot.plan(Recipe.from_data(recipe), out=tmp_path / "other").bytes_read
    assert result.bytes_read == planned == 2 * size
    assert json.loads((out / "stockpot_run.json").read_text("utf-8"))["bytes_read"] == 2 * size
    assert told == sorted(told)
    assert {total for _, total in told} == {2 * size}
    assert size in [done for done, _ in told]
    assert told[-1][0] == 2 * size
