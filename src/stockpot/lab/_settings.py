"""The sizes of a run of the demo."""

from __future__ import annotations

from dataclasses import dataclass

from stockpot.errors import ParameterError, unknown_name
from stockpot.lab._digits import TEST_COUNT
from stockpot.lab._network import Training
from stockpot.lab._networks import NETWORKS

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)


@dataclass(frozen=True)
class DemoSettings:
    """The defaults were chosen on digits that are neither trained nor tested on.

    ``rates``: learning rates, all of which are shown; ``finetunes`` seeds at each; ``repetitions`` of everything, each
    with its own base and training digits; ``period``: steps between merges while training.
    """

    seed: int = 0
    repetitions: int = 1
    network: str = "conv"
    finetunes: int = 8
    rates: tuple[float, ...] = RATES
    train_digits: int = 100
    test_digits: int = TEST_COUNT
    steps: int = 120
    batch: int = 16
    period: int = 40
    plane: int = 15
    pretraining: Training | None = None

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise unknown_name("network", self.network, list(NETWORKS))
        for what, value in (("fine-tunes", self.finetunes), ("points to a side of the plane", self.plane)):
            if value < 2:
                raise ParameterError(what, expected="at least 2", got=value)
        for what, value in (("repetitions", self.repetitions), ("learning rates", len(self.rates))):
            if value < 1:
                raise ParameterError(what, expected="at least 1", got=value)
        if not 2 <= self.test_digits <= TEST_COUNT:
            raise ParameterError("test digits", expected=f"2 to {TEST_COUNT:,}", got=self.test_digits)
