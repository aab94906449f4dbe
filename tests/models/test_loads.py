"""Merged folders of real architectures load with the library that wrote them, and hold the formula's numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import stockpot

from . import _oracle
from ._plain import shared
from ._senses import KINDS
from ._zoo import Family, load, outputs_are_finite

Families = Callable[..., Family]
DTYPES = (torch.float32, torch.bfloat16)
NARROW = ("llama", "gemma", "bert", "bert-head", "t5", "vit", "clip", "resnet")
SIDE_FILES = ("config.json", "tokenizer_config.json", "vocab.txt")


def merged(family: Family, out: Path, method: str = "model_stock", **options: object) -> stockpot.MergeResult:
    """Merge a family's folders."""
    base = family.base_folder if method == "model_stock" else None
    return stockpot.merge(method, base=base, models=family.folders, out=out, **options)  # type: ignore[arg-type]  # many types


def matrix() -> list[object]:
    """Every architecture in float32, and some in bfloat16; the others in bfloat16 are slow."""
    wide = [pytest.param(name, torch.float32, id=f"{name}-fp32") for name in KINDS]
    marks = {name: () if name in NARROW else (pytest.mark.slow,) for name in KINDS}
    return wide + [pytest.param(name, torch.bfloat16, id=f"{name}-bf16", marks=marks[name]) for name in KINDS]


@pytest.mark.parametrize(("name", "dtype"), matrix())
def test_model_stock_of_a_real_model(name: str, dtype: torch.dtype, families: Families, tmp_path: Path) -> None:
    """A merge of real fine-tunes loads whole, runs, keeps its ties and side files, and is the paper's formula."""
    family = families(name, dtype)
    assert len(list(family.base_folder.glob("*.safetensors"))) > 1
    out = tmp_path / "merged"
    result = merged(family, out)

    assert sorted(p.name for p in out.glob("model*.safetensors")) == sorted(
        p.name for p in family.folders[0].glob("model*.safetensors")
    )
    model = load(family.kind.cls, out)
    assert model.dtype == dtype
    assert outputs_are_finite(model, family.kind)
    stored = _oracle.read(out)
    model.save_pretrained(tmp_path / "again")
    again = _oracle.read(tmp_path / "again")
    assert again.keys() == stored.keys()
    for tensor_name, tensor in stored.items():
        assert torch.equal(again[tensor_name], tensor), f"{tensor_name}: loaded otherwise than stored"
    ties = shared(family.base.state_dict())
    assert bool(ties) == family.kind.tied
    assert shared(model.state_dict()) == ties
    assert all(len(names & stored.keys()) <= 1 for names in ties)
    for file in SIDE_FILES:
        assert (out / file).is_file(), file
    for file in SIDE_FILES[1:]:
        assert (out / file).read_bytes() == (family.folders[0] / file).read_bytes()
    assert json.loads((out / "config.json").read_text()) == json.loads((family.folders[0] / "config.json").read_text())

    inputs = [_oracle.read(folder) for folder in family.folders]
    inside = _oracle.check_model_stock(out, _oracle.read(family.base_folder), inputs)
    assert inside >= len(stored) // 4, "too few ratios strictly between 0 and 1 to mean anything"
    assert result.ratio is not None
    assert result.tensors == len(stored)
    assert stockpot.verify(out, recompute=1.0).problems == ()


@pytest.mark.parametrize("dtype", DTYPES, ids=("fp32", "bf16"))
@pytest.mark.parametrize("name", ["gemma", "resnet"])
def test_linear_of_a_real_model(name: str, dtype: torch.dtype, families: Families, tmp_path: Path) -> None:
    """A weighted mean of real fine-tunes loads whole and is the mean, BatchNorm's statistics unweighted."""
    family = families(name, dtype)
    out = tmp_path / "merged"
    merged(family, out, "linear", parameters={"weight": [1.0, 2.0, 5.0]})
    model = load(family.kind.cls, out)
    assert outputs_are_finite(model, family.kind)
    _oracle.check_linear(out, [_oracle.read(folder) for folder in family.folders], [1.0, 2.0, 5.0])


@pytest.mark.parametrize("granularity", ["row", "block", "model"])
def test_every_granularity_loads(granularity: str, families: Families, tmp_path: Path) -> None:
    """Whatever shares a ratio, the result loads whole, runs, and can be proved."""
    family = families("resnet", torch.float32)
    out = tmp_path / "merged"
    merged(family, out, granularity=granularity)
    assert outputs_are_finite(load(family.kind.cls, out), family.kind)
    assert stockpot.verify(out, recompute=1.0).problems == ()


def test_float16_output_of_float32_models(families: Families, tmp_path: Path) -> None:
    """``dtype`` changes the output alone: the ratios are those of the inputs, and each value is rounded once."""
    family = families("llama", torch.float32)
    out = tmp_path / "merged"
    merged(family, out, dtype="float16")
    model = load(family.kind.cls, out)
    assert model.dtype == torch.float16
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"
    _oracle.check_model_stock(
        out, _oracle.read(family.base_folder), [_oracle.read(folder) for folder in family.folders]
    )


def test_batch_norm_is_said_and_counted(families: Families, tmp_path: Path) -> None:
    """Running statistics and counters are recorded as decisions, and re-estimating BatchNorm is advised."""
    family = families("resnet", torch.float32)
    result = merged(family, tmp_path / "merged")
    stored = _oracle.read(tmp_path / "merged")
    actions = {decision.tensor: (decision.policy, decision.action) for decision in result.decisions}
    for name in stored:
        last = name.rsplit(".", 1)[-1]
        if last in _oracle.STATISTICS:
            assert actions.pop(name) == ("statistics", "mean")
        elif last == _oracle.COUNTER:
            assert actions.pop(name) == ("counter", "first")
            assert stored[name].dtype == torch.int64
    assert actions == {}
    assert "re-estimate" in result.warnings[-1]
