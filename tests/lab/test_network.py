"""The small network: shapes, training, files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest
import torch
from tests.lab._right import correct

from stockpot.lab._digits import Examples
from stockpot.lab._network import (
    Training,
    initial_weights,
    load_checkpoint,
    logits,
    save_checkpoint,
    schedule,
)
from stockpot.lab._random import stream
from stockpot.lab._training import train

SHORT = Training(steps=5, batch=16, learning_rate=2e-3)


def _batches(digits: Examples, seed: int = 0) -> Iterator[Examples]:
    generator = stream(seed, "batches")
    while True:
        yield digits.take(torch.randint(len(digits), (SHORT.batch,), generator=generator))


def test_the_network_has_about_300_thousand_parameters_and_ten_answers() -> None:
    """Its size is what the page on the demo says."""
    weights = initial_weights(stream(0, "network"))
    assert 290_000 < sum(tensor.numel() for tensor in weights.values()) < 310_000
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert logits(weights, torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_initial_weights_come_from_the_generator_alone() -> None:
    """The same stream starts the same network, another one another, and the global generator stands still."""
    before = torch.get_rng_state()
    one, same, other = (initial_weights(stream(seed, "network")) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_a_picture_is_read_the_same_alone_and_in_a_batch(digits: Examples) -> None:
    """The network has no batch statistics: merging needs none re-estimated."""
    weights = initial_weights(stream(0, "network"))
    whole = logits(weights, digits.images[:8])
    alone = torch.cat([logits(weights, digits.images[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(
        whole, alone, atol=1e-4, rtol=1e-4
    )  # convolutions of other batch sizes sum in other orders


def test_training_repeats_bit_for_bit_and_leaves_its_start_alone(digits: Examples) -> None:
    """Equal batches give equal weights; the base stays the base."""
    start = initial_weights(stream(0, "network"))
    kept = {name: tensor.clone() for name, tensor in start.items()}
    before = torch.get_rng_state()
    one, again = (train(start, _batches(digits), SHORT) for _ in range(2))
    other = train(start, _batches(digits, seed=1), SHORT)
    assert torch.equal(before, torch.get_rng_state())
    for name in start:
        assert torch.equal(start[name], kept[name])
        assert torch.equal(one[name], again[name])
        assert not torch.equal(one[name], other[name])
        assert not torch.equal(one[name], start[name])
        assert not one[name].requires_grad


def test_training_learns(digits: Examples) -> None:
    """Sixty steps on one batch read it without a mistake."""
    batch = digits.take(torch.arange(32))
    start = initial_weights(stream(0, "network"))
    trained = train(start, repeat(batch), Training(steps=60, batch=32, learning_rate=1e-3))
    assert correct(start, batch).mean() < 0.5
    assert correct(trained, batch).mean() == 1


def test_training_tells_each_step() -> None:
    """Progress counts the steps done, from one."""
    told: list[int] = []
    batch = Examples(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))
    train(initial_weights(stream(0, "network")), repeat(batch), Training(3, 2, 1e-3), told.append)
    assert told == [1, 2, 3]


@pytest.mark.parametrize("steps", [1, 5, 120, 600])
def test_the_schedule_warms_up_and_comes_down(steps: int) -> None:
    """It reaches the whole rate once at the end of the warm-up, then falls, never below nothing."""
    rates = [schedule(step, steps) for step in range(steps)]
    warmup = max(1, steps // 10)
    assert rates[warmup - 1] == 1
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert all(0 < rate <= 1 for rate in rates)


def test_correct_says_which_pictures_are_read_rightly() -> None:
    """Golden values: a network that always answers 3."""
    weights = initial_weights(stream(0, "network"))
    weights["head.weight"] = torch.zeros(10, weights["head.weight"].shape[1])
    weights["head.bias"] = torch.nn.functional.one_hot(torch.tensor(3), 10).to(torch.float32)
    found = correct(weights, Examples(torch.zeros(3, 1, 8, 8), torch.tensor([3, 1, 3])))
    assert found.dtype == torch.float64
    assert found.tolist() == [1, 0, 1]


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    """A folder as other libraries write it, with the same bits in it, and written twice the same bytes."""
    weights = initial_weights(stream(0, "network"))
    for folder in ("a", "b"):
        save_checkpoint(weights, tmp_path / folder)
    found = load_checkpoint(tmp_path / "a")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "a" / "config.json").read_text())["classes"] == 10
    bytes_of = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("a", "b")]
    assert bytes_of[0] == bytes_of[1]
