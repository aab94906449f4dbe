"""A bound on the time of one evaluation."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from stockpot import errors

REPEAT_SECONDS = 0.5
"""The alarm rings on: an evaluator may swallow an exception, but hardly all of them."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """EvaluatorError where the body takes longer. By an alarm, which only the main thread can set."""
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise errors.UsageError("a time-out needs the main thread", remedy="leave it out, or use a command: evaluator")

    def ring(number: int, frame: FrameType | None) -> None:
        raise errors.EvaluatorError(
            "the evaluator took too long", expected=f"at most {seconds:g} s", remedy="give --timeout more, or look why"
        )

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
