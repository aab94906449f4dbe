"""Random streams by name."""

from __future__ import annotations

import torch

from stockpot.lab._random import stream, uniform


def test_equal_keys_give_equal_numbers_and_different_keys_different_ones() -> None:
    """A stream is decided by its seed and names, part by part, and by nothing drawn before."""
    drawn = torch.rand(8, generator=stream(3, "finetune", 1))
    torch.rand(100, generator=stream(3, "other"))
    assert torch.equal(drawn, torch.rand(8, generator=stream(3, "finetune", 1)))
    for seed, names in ((3, ("finetune", 2)), (4, ("finetune", 1)), (3, ("finetune",)), (-3, ("finetune", 1))):
        assert not torch.equal(drawn, torch.rand(8, generator=stream(seed, *names)))


def test_streams_leave_the_global_generator_alone() -> None:
    """Drawing from a stream does not move the numbers that a user's own code draws."""
    before = torch.get_rng_state()
    uniform(0, 1, (5,), stream(0, "x"))
    assert torch.equal(before, torch.get_rng_state())


def test_uniform_stays_between_its_bounds() -> None:
    """Uniform numbers fill their interval and do not leave it."""
    drawn = uniform(-2, 3, (1000,), stream(0, "bounds"))
    assert drawn.dtype == torch.float32
    assert -2 <= drawn.min() < -1.9
    assert 2.9 < drawn.max() <= 3
