"""The checkpoints that a run of training left in its folder."""

from __future__ import annotations

import re
from pathlib import Path

from stockpot import errors
from stockpot.checkpoint._folder import is_weights

_NUMBER = re.compile(r"\d+")
_SHARD = re.compile(r"-\d{5,}-of-\d{5,}[.]")


def last_checkpoints(run: str | Path, count: int) -> list[str]:
    """The last ``count`` checkpoints of a run, the earliest first.

    They are what in the run's folder is named alike but for numbers (``checkpoint-500``, ``step_1000``,
    ``epoch=3-step=400.ckpt``): folders, or files of weights; their order is that of their step, else of their epoch,
    else of all numbers. Of ``BASE+RUN`` the last adapters of a run, each on that base. Raises NotFoundError
    where the folder is none, or holds fewer, or more than one such series.

    >>> import tempfile, pathlib
    >>> run = pathlib.Path(tempfile.mkdtemp())
    >>> for step in (5, 50, 500):
    ...     (run / f"checkpoint-{step}").mkdir()
    >>> [pathlib.Path(one).name for one in last_checkpoints(run, 2)]
    ['checkpoint-50', 'checkpoint-500']
    """
    if count < 1:
        raise errors.ParameterError("--last is a number of checkpoints", expected="1 or more", got=count)
    folder = Path(run).expanduser()
    base, plus, adapters = str(run).rpartition("+")
    if plus and not folder.is_dir() and Path(adapters).expanduser().is_dir():
        return [f"{base}+{one}" for one in last_checkpoints(adapters, count)]
    if not folder.is_dir():
        raise errors.NotFoundError("no such folder of a run", file=str(run), remedy="--last takes the folder of a run")
    series: dict[str, list[Path]] = {}
    for entry in folder.iterdir():
        if not entry.name.startswith(".") and _NUMBER.search(entry.name) and _is_checkpoint(entry):
            series.setdefault(_NUMBER.sub("#", entry.name), []).append(entry)
    long = [entries for entries in series.values() if len(entries) >= count]
    found = max(series.values(), key=len, default=[])
    if not long:
        raise errors.NotFoundError(
            "the run has too few checkpoints", file=str(run), expected=f"{count}", got=len(found),
            remedy="--last counts folders, or files of weights, named alike but for numbers",
        )  # fmt: skip
    if len(long) > 1:
        raise errors.NotFoundError(
            "several series of checkpoints in one folder", file=str(run),
            got=", ".join(sorted(name for name, entries in series.items() if len(entries) >= count)),
            remedy="name the checkpoints themselves",
        )  # fmt: skip
    return [str(entry) for entry in sorted(long[0], key=_numbers)[-count:]]


def _is_checkpoint(entry: Path) -> bool:
    return entry.is_dir() or (is_weights(entry.name) and not _SHARD.search(entry.name))


def _numbers(entry: Path) -> list[int]:
    """What the name says of time: its step, else its epoch, else all its numbers."""
    for word in ("step", "iter", "checkpoint", "epoch"):
        if found := re.search(rf"{word}[a-z]*[-_=.]?(\d+)", entry.name, re.IGNORECASE):
            return [int(found[1])]
    return [int(number) for number in _NUMBER.findall(entry.name)]
