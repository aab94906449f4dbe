"""A CLIP's accuracy on one set of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stockpot import errors
from stockpot.evaluate import Options, Scores
from stockpot.lab._clip_model import Judge
from stockpot.lab._imagenet import ImageSet
from stockpot.lab._pixels import batches

BATCH = 128
ACCURACY = "accuracy"


@dataclass(frozen=True)
class ClipEvaluator:
    """Accuracy on one set, by one judge."""

    images: ImageSet
    judge: Judge
    options: Options
    workers: int | None
    form: Literal["state_dict", "checkpoint"] = "state_dict"
    uses_folder: bool = False

    @property
    def name(self) -> str:
        return f"clip:{self.images.name}"

    @cached_property
    def content(self) -> Mapping[str, Any] | None:
        return {"form": "clip", "set": self.images.name, "data": self.images.digest(), **self.judge.content()}

    def evaluate(self, model: dict[str, Any] | Path, folder: Path | None = None) -> Scores:
        assert isinstance(model, dict)
        size, batch = self.judge.base.preparation.size, self.options.batch or BATCH
        labels, right, done = torch.tensor(self.images.labels), 0, 0
        with torch.inference_mode():
            net, head, bias = self.judge.become(model, self.name)
            for pixels in batches(self.images.files, size, batch, border=self.images.border, workers=self.workers):
                found = answered(self.judge.answers(net, head, bias, pixels), self.images.groups)
                right += int((found == labels[done : done + len(found)]).sum())
                done += len(found)
        return Scores({ACCURACY: right / done})


def answered(logits: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """For each row the group that has the greatest logit, a group's being the greatest of its classes'."""
    classes = torch.tensor([number for group in groups for number in group])
    if not torch.isfinite(logits).all():
        raise errors.EvaluatorError("the model's answers are not finite numbers", remedy="try --precision float32")
    owner = torch.tensor([place for place, group in enumerate(groups) for _ in group])
    return owner[logits[:, classes].argmax(dim=1)]
