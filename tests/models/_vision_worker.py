"""A process of its own that makes, saves and loads models of timm, open_clip and torchvision.

torchvision is built for another torch: what it registers would fail, and its presence breaks transformers. So it lives
in a folder that only this process sees. A line of JSON in, ``{"do": ..., "kind": ..., "form": ..., "path": ...}``, a
line out.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _plain import LONE_FORMS, loaded, seeded, shared, tuned

BATCH, WORDS, LABELS, SIZE = 8, 64, 3, 32
MODELS = 3
_register_fake = torch.library.register_fake


def _register_all_but_torchvision(op: Any, *given: Any, **named: Any) -> Any:
    if isinstance(op, str) and op.startswith("torchvision::"):
        return lambda function: function
    return _register_fake(op, *given, **named)


torch.library.register_fake = _register_all_but_torchvision

import open_clip  # noqa: E402  # after the line above
import safetensors.torch  # noqa: E402  # after the line above
import timm  # noqa: E402  # after the line above
import torchvision  # noqa: E402  # after the line above
from open_clip.push_to_hf_hub import save_for_hf as save_open_clip  # noqa: E402  # after the line above
from timm.models import save_for_hf as save_timm  # noqa: E402  # after the line above


def images(generator: torch.Generator) -> torch.Tensor:
    """Coloured noise."""
    return torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)


def classify(model: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
    """The loss over noise, mostly of one class."""
    return torch.nn.functional.cross_entropy(
        model(images(generator)), (torch.rand(BATCH, generator=generator) > 0.2).long()
    )


def pair(model: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
    """The contrastive loss over noise and captions."""
    words = torch.randint(1, WORDS - 1, (BATCH, 8), generator=generator)
    words[:, -1] = WORDS - 1
    return open_clip.ClipLoss()(*model(images(generator), words))


@dataclass(frozen=True)
class Kind:
    """How one architecture is made and trained; saved in a folder and loaded from there, if its library does that."""

    make: Callable[[], torch.nn.Module]
    loss: Callable[[torch.nn.Module, torch.Generator], torch.Tensor]
    save: Callable[[torch.nn.Module, Path, bool | str], None] | None = None
    load: Callable[[Path], torch.nn.Module] | None = None


def of_timm(name: str, **arguments: Any) -> Kind:
    """A model of timm with its own way to a folder and back."""

    def save(model: torch.nn.Module, folder: Path, safe: bool | str) -> None:
        save_timm(model, folder, model_args=arguments, safe_serialization=safe)

    return Kind(
        lambda: timm.create_model(name, **arguments),
        classify,
        save,
        lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True),
    )


OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 2},
}


class Tokens:
    """What stands for a tokenizer when open_clip saves one."""

    def save_pretrained(self, folder: Path) -> None:
        """A file of it."""
        (folder / "tokenizer_config.json").write_text("{}", "utf-8")


def of_open_clip() -> Kind:
    """A CLIP of open_clip with its own way to a folder and back."""

    def make() -> torch.nn.Module:
        model = open_clip.CLIP(**OPEN_CLIP)
        open_clip.set_model_preprocess_cfg(model, {"mean": (0.5,) * 3, "std": (0.5,) * 3, "size": SIZE})
        return model

    return Kind(
        make,
        pair,
        lambda model, folder, safe: save_open_clip(model, Tokens(), OPEN_CLIP, folder, safe_serialization=safe),
        lambda folder: open_clip.create_model(f"local-dir:{folder}"),
    )


class Narrow(torchvision.models.ResNet):
    """torchvision's ResNet-18 with an eighth of its channels."""

    def __init__(self) -> None:
        super().__init__(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2])
        self.fc = torch.nn.Linear(64, LABELS)

    def _make_layer(self, block: Any, planes: int, *given: Any, **named: Any) -> torch.nn.Sequential:
        return super()._make_layer(block, planes // 8, *given, **named)


KINDS = {
    "timm-vit": of_timm(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=LABELS
    ),
    "timm-resnet": of_timm("resnet18", channels=(8, 8, 16, 16), stem_width=8, num_classes=LABELS),
    "timm-convnext": of_timm("convnext_atto", dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), num_classes=LABELS),
    "open-clip": of_open_clip(),
    "torchvision-resnet18": Kind(Narrow, classify),
}
FOLDERS: dict[str, bool | str] = {"folder": "both", "bin": False}
"""``safe_serialization`` of each form that is a folder; both files are what open_clip writes unasked."""


@functools.cache
def family(name: str) -> tuple[torch.nn.Module, ...]:
    """A base and its fine-tunes."""
    kind = KINDS[name]
    base = seeded(kind.make, 0).eval()
    return (base, *(tuned(base, kind.loss, 100 + number) for number in range(MODELS)))


def write(name: str, form: str, root: Path) -> dict[str, Any]:
    """Save them all in that form, and their state dicts for whoever compares."""
    inputs, states = [], []
    for number, model in enumerate(family(name)):
        states.append(root / f"state{number}.pt")
        torch.save(model.state_dict(), states[-1])
        if form in FOLDERS:
            inputs.append(root / f"in{number}")
            KINDS[name].save(model, inputs[-1], FOLDERS[form])
        else:
            writer, suffix, _ = LONE_FORMS[form]
            inputs.append(root / f"in{number}{suffix}")
            writer(model, inputs[-1])
    return {"inputs": [str(path) for path in inputs], "states": [str(path) for path in states]}


def load(name: str, form: str, out: Path) -> dict[str, Any]:
    """Load a merge with its library, use it, save what is in memory then, and save it again as the library does."""
    kind = KINDS[name]
    model = kind.load(out) if form in FOLDERS else loaded(seeded(kind.make, 9), out, form)[0]
    with torch.no_grad():
        score = kind.loss(model.eval(), torch.Generator().manual_seed(7))
    state = out.parent / "loaded.pt"
    torch.save(model.state_dict(), state)
    again = out.parent / "again"
    if form in FOLDERS:
        kind.save(model, again, True)
    else:
        again.mkdir()
        safetensors.torch.save_model(model, str(again / "model.safetensors"))
    ties = sorted(sorted(names) for names in shared(model.state_dict()))
    return {"finite": bool(torch.isfinite(score)), "state": str(state), "again": str(again), "ties": ties}


def serve() -> None:
    """Answer until nothing more is asked; what libraries print goes elsewhere."""
    answers = os.fdopen(os.dup(1), "w")
    sys.stdout = sys.stderr
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"write": write, "load": load}[asked["do"]](asked["kind"], asked["form"], Path(asked["path"]))
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
