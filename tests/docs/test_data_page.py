"""The page about methods with data: its program makes a task's model of what ``emr`` writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import stockpot

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def test_the_program_makes_a_tasks_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the rounding of the unified model, the model of ``--set task=2``."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(9, 7, generator=generator)
    for name in ("BASE", "FT1", "FT2", "FT3"):
        (tmp_path / name).mkdir()
        step = 0.0 if name == "BASE" else 0.1 * torch.randn(9, 7, generator=generator)
        safetensors.torch.save_file({"w": base + step, "b": (base + step)[0]}, tmp_path / name / "model.safetensors")
    given: dict[str, Any] = {"base": "BASE", "models": ["FT1", "FT2", "FT3"]}
    stockpot.merge("emr", out="unified", **given)
    wanted = stockpot.merge("emr", out="task2", parameters={"task": 2}, **given).out
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    found: dict[str, Any] = {}
    exec(program, found)
    for name, want in safetensors.torch.load_file(wanted / "model.safetensors").items():
        assert torch.allclose(found["model"][name], want, rtol=1e-6, atol=1e-6)
        assert not torch.equal(want, safetensors.torch.load_file("unified/model.safetensors")[name])
