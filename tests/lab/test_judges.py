"""The demo's digits as evaluators."""

from __future__ import annotations

import torch
from tests.lab._right import correct

from stockpot.evaluate import load_evaluator
from stockpot.lab import held_out_digits, unseen_digits
from stockpot.lab._digits import load_digits, split
from stockpot.lab._network import initial_weights


def test_they_are_the_demos_digits() -> None:
    """Accuracy is that of the split that the demo sets apart; a limit takes the first."""
    weights = initial_weights(torch.Generator().manual_seed(1))
    data = split(load_digits(), train_count=100, seed=0)
    assert held_out_digits(weights)["accuracy"] == correct(weights, data.spare).mean().item()
    found = unseen_digits(weights, limit=50)
    assert found["accuracy"] == correct(weights, data.test).tolist()[:50].count(1.0) / 50
    assert found["logits"].shape == (50, 10)
    assert set(found) == {"accuracy", "loss", "logits", "labels", "shifted"}


def test_named_on_the_command_line() -> None:
    """Found by their public place; their content is the code where they are defined, not only where they are named."""
    weights = initial_weights(torch.Generator().manual_seed(1))
    found = load_evaluator("stockpot.lab:held_out_digits").evaluate(weights)
    assert set(found.values) == {"accuracy", "loss"}
    assert found.labels is not None
    assert len(found.labels) == 697
    contents = [load_evaluator(f"stockpot.lab:{name}").content for name in ("held_out_digits", "run_demo")]
    assert contents[0] is not None
    assert contents[1] is not None
    assert contents[0]["source"] != contents[1]["source"]
