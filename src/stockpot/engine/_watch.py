"""Patterns of a recipe held against the names of tensors: in bounded ways each, in bounded time altogether."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from stockpot._pattern_ways import require_bounded_on
from stockpot._patterns import ForeverError
from stockpot.engine._job import Job, pattern_error
from stockpot.measure import group_of

PATIENCE_SECONDS = 60.0
"""Of the processor, for all patterns of one option; what people write takes less than a second on 45,000 names."""


class Watch:
    """Over the patterns of one option, from the moment that it is made."""

    def __init__(self, option: str) -> None:
        self._option, self._began = option, time.thread_time()

    def require(self, pattern: str, name: str) -> None:
        """Raises ParameterError where the pattern may take forever on the name, or the patience is at an end."""
        try:
            require_bounded_on(pattern, name)
            if time.thread_time() - self._began > PATIENCE_SECONDS:
                raise ForeverError(f"it would take forever on names such as {name}")
        except ForeverError as error:
            raise pattern_error(self._option, pattern, error) from None

    def search(self, pattern: str, name: str) -> bool:
        """Whether the pattern is found in the name."""
        self.require(pattern, name)
        return re.search(pattern, name) is not None


def grouping(job: Job) -> Callable[[str], str]:
    """From a tensor's name to the group whose coefficients it shares."""
    watch = Watch("block_regex")

    def group(name: str) -> str:
        if job.block_regex is not None:
            watch.require(job.block_regex, name)
        return group_of(name, job.granularity, job.block_regex)

    return group
