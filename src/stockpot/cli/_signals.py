"""What ends the program from outside, and when."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the process at once meanwhile: nothing has begun that would have to be put in order.

    As exceptions they could be lost: Python drops what is raised in a callback of its own import system.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
