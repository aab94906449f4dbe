"""Fisher-weighted averaging against its oracle, and what its files must be."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.evaluate import _zoo as zoo
from tests.oracles import weighted as oracle
from tests.oracles.exact import numbers

import stockpot
from stockpot import errors

SHAPES = {"a.weight": (40, 7), "a.bias": (40,), "scale": ()}


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Seeded normal tensors."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in SHAPES.items()
    }


def saved(folder: Path, *values: dict[str, torch.Tensor]) -> list[str]:
    """One file for each."""
    files = [str(folder / f"f{number}.safetensors") for number in range(len(values))]
    for file, own in zip(files, values, strict=True):
        save_file(own, file)
    return files


def merged(models: list[dict[str, torch.Tensor]], files: list[str], **parameters: Any) -> dict[str, torch.Tensor]:
    """In memory."""
    return stockpot.merge_state_dicts("fisher", models=models, parameters={"fisher": files, **parameters})


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("weight", [[1.0, 1.0, 1.0], [0.5, 2.0, 0.0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_against_the_oracle(dtype: torch.dtype, weight: list[float], scale: float, tmp_path: Path) -> None:
    """Every element, whatever the scale of the values; zero values of one model or of all are among them."""
    models = [drawn(number, dtype) for number in range(3)]
    values = [
        {name: one.square() * scale for name, one in drawn(10 + number, torch.float64).items()} for number in range(3)
    ]
    values[0]["a.weight"][:9] = 0.0
    values[1]["a.weight"][3:6] = 0.0
    values[2]["a.weight"][5:12] = 0.0
    found = merged(models, saved(tmp_path, *values), weight=weight)
    for name, own in found.items():
        want = oracle.fisher([m[name] for m in models], [v[name] for v in values], weight)
        # The result is rounded once; the oracle's own error is some units of float64.
        rounding = 2.0 ** {torch.float32: -24, torch.bfloat16: -8, torch.float64: -50}[dtype]
        bound = rounding * np.abs(want) + 4e-16 * max(float(m[name].abs().max()) for m in models)
        assert (np.abs(numbers(own) - want) <= bound).all(), name


@pytest.mark.parametrize("weight", [1.0, [0.5, 2.0, 1.0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_values_give_the_mean_bit_for_bit(dtype: torch.dtype, weight: object, tmp_path: Path) -> None:
    """The bits of ``linear``, where all models' values are equal, zeros among them."""
    models = [drawn(number, dtype) for number in range(3)]
    values = {name: one.square() for name, one in drawn(10).items()}
    values["a.weight"][2:5] = 0.0
    found = merged(models, saved(tmp_path, values, values, values), weight=weight)
    mean = stockpot.merge_state_dicts("linear", models=models, parameters={"weight": weight})
    assert all(torch.equal(found[name], mean[name]) for name in mean)


def test_a_model_that_alone_counts_is_copied(tmp_path: Path) -> None:
    """Where the others' values are zero, its bits; also where float64 could not hold the difference."""
    models = [{"w": torch.tensor([1e30, 3.0, -0.0])}, {"w": torch.tensor([1e-30, 1.1, 5.0])}]
    files = saved(tmp_path, {"w": torch.tensor([0.0, 0.0, 1.0])}, {"w": torch.tensor([1.0, 1e-20, 0.0])})
    assert merged(models, files)["w"].tolist() == [models[1]["w"][0].item(), models[1]["w"][1].item(), -0.0]
    assert torch.signbit(merged(models, files)["w"])[2]


def test_real_models_through_the_command(tmp_path: Path) -> None:
    """Collected of real classifiers, merged, loaded: each tensor the oracle's; provenance, verify know the files."""
    folders = [zoo.bert(tmp_path / f"ft{number}") for number in range(2)]
    noise = torch.Generator().manual_seed(5)
    weights = {
        name: one + 0.1 * torch.randn(one.shape, generator=noise) for name, one in zoo.weights_of(folders[1]).items()
    }
    save_file(weights, folders[1] / "model.safetensors", {"format": "pt"})
    data = zoo.write_lines(tmp_path / "d.jsonl", [{"text": text} for text in ("a red thing", "blue", "the photo .")])
    files = [str(tmp_path / f"fisher{number}.safetensors") for number in range(2)]
    for folder, file in zip(folders, files, strict=True):
        stockpot.collect_fisher(folder, data=data, out=file)
    out = tmp_path / "out"
    stockpot.merge("fisher", models=folders, out=out, parameters={"fisher": files})
    models, values = [zoo.weights_of(folder) for folder in folders], [load_file(file) for file in files]
    for name, own in load_file(out / "model.safetensors").items():
        want = oracle.fisher([m[name] for m in models], [v[name] for v in values])
        assert np.abs(numbers(own) - want).max() <= 2.0**-23 * np.abs(want).max()
    transformers.AutoModelForSequenceClassification.from_pretrained(out)
    record = json.loads((out / "stockpot.json").read_text("utf-8"))
    assert [(one["ref"], one["role"]) for one in record["inputs"]][2:] == [(file, "statistics") for file in files]
    assert stockpot.verify(out, recompute=1.0).problems == ()
    content = bytearray(Path(files[1]).read_bytes())
    content[-4:] = struct.pack("<f", 9.0)
    Path(files[1]).write_bytes(content)
    problems = stockpot.verify(out, recompute=1.0).problems
    assert any("bytes differ" in line for line in problems), problems


def test_tensors_without_values_are_the_mean_and_that_is_told(tmp_path: Path) -> None:
    """Buffers have none."""
    models = [drawn(number) for number in range(2)]
    values = [{"a.weight": one["a.weight"].square()} for one in models]
    for number, model in enumerate(models):
        save_file(model, tmp_path / f"m{number}.safetensors")
    refs = [str(tmp_path / f"m{number}.safetensors") for number in range(2)]
    result = stockpot.merge(
        "fisher", models=refs, out=tmp_path / "out.safetensors", parameters={"fisher": saved(tmp_path, *values)}
    )
    assert {d.tensor for d in result.decisions if d.policy == "fisher"} == {"a.bias", "scale"}
    assert any("2 tensors have no fisher values" in line for line in result.warnings)
    assert torch.equal(load_file(result.out)["a.bias"], (models[0]["a.bias"] + models[1]["a.bias"]) / 2)


def test_renamed_models_keep_their_values(tmp_path: Path) -> None:
    """A file speaks of the names in its own model's checkpoint."""
    models = [drawn(number) for number in range(2)]
    values = [{name: one.square() for name, one in drawn(10 + number).items()} for number in range(2)]
    want = merged(models, saved(tmp_path, *values))
    models[1] = {f"net.{name}": one for name, one in models[1].items()}
    files = saved(tmp_path, values[0], {f"net.{name}": one for name, one in values[1].items()})
    found = stockpot.merge_state_dicts("fisher", models=models, parameters={"fisher": files}, rename=["2:^net[.]="])
    assert all(torch.equal(found[name], want[name]) for name in want)


def _negative(values: list[dict[str, torch.Tensor]]) -> None:
    values[1]["a.bias"][3] = -1e-9


def _odd(values: list[dict[str, torch.Tensor]]) -> None:
    values[1]["a.bias"][3] = float("nan")


def _shape(values: list[dict[str, torch.Tensor]]) -> None:
    values[1]["a.bias"] = torch.ones(39)


def _some(values: list[dict[str, torch.Tensor]]) -> None:
    del values[1]["a.bias"]


def _none(values: list[dict[str, torch.Tensor]]) -> None:
    for own in values:
        for name in list(own):
            own[f"other.{name}"] = own.pop(name)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (_negative, errors.MethodError, "below zero"),
        (_odd, errors.NonFiniteError, "a.bias"),
        (_shape, errors.MismatchError, "do not fit"),
        (_some, errors.MissingTensorError, "some models only"),
        (_none, errors.MissingTensorError, "no file of fisher"),
    ],
)
def test_values_that_cannot_be(change: Any, kind: type[Exception], says: str, tmp_path: Path) -> None:
    """Each is refused, with the tensor's name."""
    values = [{name: one.square() for name, one in drawn(10 + number).items()} for number in range(2)]
    change(values)
    with pytest.raises(kind, match=says):
        merged([drawn(0), drawn(1)], saved(tmp_path, *values))


@pytest.mark.parametrize("weight", [[1.0, -1.0], [0.0, 0.0]])
def test_weights_that_cannot_be(weight: list[float], tmp_path: Path) -> None:
    """Below zero, or all zero."""
    files = saved(tmp_path, drawn(0), drawn(1))
    with pytest.raises(errors.ParameterError, match="weights of fisher"):
        merged([drawn(0), drawn(1)], files, weight=weight)


def test_files_are_needed_and_must_be_of_their_kind(tmp_path: Path) -> None:
    """No file, a missing one, and one of layer inputs."""
    models = [drawn(0), drawn(1)]
    with pytest.raises(errors.ParameterError, match="fisher needs fisher"):
        stockpot.merge_state_dicts("fisher", models=models)
    with pytest.raises(errors.NotFoundError):
        merged(models, ["nowhere.safetensors", "nowhere.safetensors"])
    save_file(drawn(3), tmp_path / "grams.safetensors", {"stockpot_statistics": '{"kind": "inputs"}'})
    with pytest.raises(errors.UsageError, match="holds something else"):
        merged(models, [str(tmp_path / "grams.safetensors")] * 2)
