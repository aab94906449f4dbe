"""Evaluators from what people have already: a DataLoader, a transformers Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from stockpot import errors

Function = Callable[[Mapping[str, Any]], dict[str, Any]]
_COSTS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "epoch")


def with_loader(model: Any, loader: Iterable[Any]) -> Function:
    """Accuracy, loss, logits and labels of a classifier over a DataLoader.

    Arguments: ``model``, a ``torch.nn.Module`` into which each candidate is loaded; ``loader``, batches that are
    ``(inputs, labels)`` or maps with ``labels``; it must give the same examples each time (no shuffling, no dropping).
    Returns a function for ``stockpot.soups``. Cost: one pass; the model's own memory beside the live one.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> evaluate = with_loader(model, [(torch.eye(2), torch.tensor([0, 1]))])
    >>> evaluate({"weight": torch.eye(2), "bias": torch.zeros(2)})["accuracy"]
    1.0
    """

    def evaluate(weights: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        from stockpot.evaluate._classify import classified

        model.load_state_dict(dict(weights))
        model.eval()
        device = next(iter(model.parameters())).device
        found, labels = [], []
        with torch.inference_mode():
            for batch in loader:
                if isinstance(batch, Mapping):
                    given = {name: value.to(device) for name, value in batch.items() if name != "labels"}
                    answer, own = model(**given), batch["labels"]
                else:
                    inputs, own = batch
                    answer = model(inputs.to(device))
                found.append(getattr(answer, "logits", answer).float().cpu())
                labels.append(own.cpu())
        if not found:
            raise errors.EvaluatorError("the loader gave no batch")
        scores = classified(torch.cat(found), torch.cat(labels))
        return {**scores.values, "logits": scores.logits, "labels": scores.labels}

    return evaluate


def with_trainer(trainer: Any, dataset: Any = None) -> Function:
    """The metrics of a ``transformers.Trainer``'s own ``evaluate``, without their ``eval_`` and without times.

    Arguments: ``trainer``, whose model each candidate is loaded into; ``dataset``, in place of its ``eval_dataset``.
    Returns a function for ``stockpot.soups``; with several metrics say which decides: ``select="loss:min"``.
    """

    def evaluate(weights: Mapping[str, Any]) -> dict[str, Any]:
        trainer.model.load_state_dict(dict(weights))
        metrics = trainer.evaluate() if dataset is None else trainer.evaluate(dataset)
        named = {name.removeprefix("eval_"): value for name, value in metrics.items()}
        return {name: value for name, value in named.items() if name not in _COSTS}

    return evaluate
