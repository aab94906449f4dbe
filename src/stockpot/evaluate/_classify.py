"""What classifiers share: scores from logits, and labels as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from stockpot import errors
from stockpot.evaluate._scores import Scores


def classified(logits: Tensor, labels: Tensor) -> Scores:
    """Accuracy and cross-entropy, with what they come from."""
    right = (logits.argmax(dim=1) == labels).double().mean().item()
    loss = F.cross_entropy(logits.double(), labels).item()
    return Scores({"accuracy": right, "loss": loss}, logits.numpy(), labels.numpy())


def label_numbers(names: Sequence[str], classes: Sequence[str], config: Any, evaluator: str) -> list[int]:
    """Numbers of labels: by the config's names, as numbers, or (the same count of both) in sorted order."""
    known = {str(name): int(number) for name, number in (config.label2id or {}).items()}
    if set(classes) <= set(known):
        return [known[name] for name in names]
    if all(name.isdecimal() and int(name) < config.num_labels for name in classes):
        return [int(name) for name in names]
    generic = all(name == f"LABEL_{number}" for name, number in known.items())
    if generic and len(classes) == config.num_labels:
        order = {name: number for number, name in enumerate(sorted(classes))}
        return [order[name] for name in names]
    strange = sorted(set(classes) - set(known))
    raise errors.EvaluatorError(
        "labels that the model does not know", file=evaluator, expected=_some(sorted(known)), got=_some(strange)
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
