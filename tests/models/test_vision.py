"""Models of timm, open_clip and torchvision, made, saved and loaded by these in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import stockpot

from . import _oracle
from ._plain import LONE_FORMS, same_tensors

PACKAGES = Path(sys.prefix) / "vision"
IN_FOLDERS = ("timm-vit", "timm-resnet", "timm-convnext", "open-clip")
STEMS = {"timm-vit": "model", "timm-resnet": "model", "timm-convnext": "model", "open-clip": "open_clip_model"}
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Ask the process; it starts once."""
    if not (PACKAGES / "timm").is_dir():
        told = f"timm, open_clip and torchvision are not in {PACKAGES}: make vision puts them there"
        pytest.fail(told) if os.environ.get("CI") == "true" else pytest.skip(told)
    script = Path(__file__).with_name("_vision_worker.py")
    path = os.pathsep.join([str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        pipe_in, pipe_out = process.stdin, process.stdout

        def asked(do: str, kind: str, form: str, path: Path) -> dict[str, Any]:
            print(json.dumps({"do": do, "kind": kind, "form": form, "path": str(path)}), file=pipe_in, flush=True)
            answer = json.loads(pipe_out.readline() or '{"error": "the process has ended"}')
            assert "error" not in answer, answer["error"]
            return answer

        yield asked
        pipe_in.close()


def states(answer: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """What the models are, base first."""
    return [torch.load(path, weights_only=True) for path in answer["states"]]


@pytest.mark.parametrize("form", ["folder", "bin"])
@pytest.mark.parametrize("name", IN_FOLDERS)
def test_folders(name: str, form: str, ask: Ask, tmp_path: Path) -> None:
    """The folder that the library saved comes out as one that it loads, under the name that it looks for."""
    written = ask("write", name, form, tmp_path)
    base, *models = map(Path, written["inputs"])
    out = tmp_path / "out"
    result = stockpot.merge("model_stock", base=base, models=models, out=out)
    merged = _oracle.read(out)
    weights = [path.name for path in out.iterdir() if path.suffix in (".safetensors", ".bin")]
    assert sorted(weights) == sorted([f"{STEMS[name]}.safetensors", "stockpot_geometry.safetensors"])
    for side in models[0].glob("*.json"):
        assert (out / side.name).read_bytes() == side.read_bytes()
    found = check(ask("load", name, form, out), merged)
    _, *inputs = start, *_ = states(written)
    assert found.keys() == start.keys()
    assert _oracle.check_model_stock(out, start, inputs) >= len(merged) // 4
    assert any("re-estimate" in warning for warning in result.warnings) == (name == "timm-resnet")
    assert stockpot.verify(out, recompute=1.0).problems == ()


@pytest.mark.parametrize("form", LONE_FORMS)
@pytest.mark.parametrize("name", [*IN_FOLDERS, "torchvision-resnet18"])
def test_files(name: str, form: str, ask: Ask, tmp_path: Path) -> None:
    """A file of whichever training script comes out as one that loads strictly, with the same bytes each time."""
    written = ask("write", name, form, tmp_path)
    base, *models = map(Path, written["inputs"])
    out = tmp_path / f"OUT{LONE_FORMS[form][2]}"
    stockpot.merge("model_stock", base=base, models=models, out=out)
    start, *inputs = states(written)
    check(ask("load", name, form, out), stockpot.merge_state_dicts("model_stock", base=start, models=inputs))
    if out.suffix == ".safetensors":
        prefix = "model." if form == "training-state" else ""
        assert _oracle.check_model_stock(out, start, inputs, prefix=prefix) >= len(start) // 4


def check(answer: dict[str, Any], merged: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What was loaded is what was merged, so is what is saved again, and it can be used; what was loaded."""
    assert answer["finite"]
    assert answer["ties"] == []
    found = torch.load(answer["state"], weights_only=True)
    same_tensors(found, merged)
    same_tensors(_oracle.read(Path(answer["again"])), merged)
    return found
