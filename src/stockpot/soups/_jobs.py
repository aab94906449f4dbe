"""Single models scored by several processes, which meet in the cache of results."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

from stockpot import errors
from stockpot.evaluate import ResultCache
from stockpot.soups._ingredients import Correspondence, Ingredients
from stockpot.soups._running import Evaluation, Running

_PARENT_DEATH_SIGNAL = 1
"""Linux: what a process is sent when the one that started it ends."""


def score_singles(ingredients: Ingredients, evaluate: Evaluation, running: Running, jobs: int) -> None:
    """Fill the cache with the score of every model by itself; raises what the first of the processes raised."""
    path = running.cache.path if isinstance(running.cache, ResultCache) else running.cache
    if not isinstance(evaluate, str) or path is None:
        raise errors.UsageError(
            "several jobs meet in a file of results", expected="an evaluator in words, and a cache on disk",
            remedy="give both, or one job",
        )  # fmt: skip
    if any(not ingredients.sources[model].files for model in ingredients.models):
        raise errors.UsageError("several jobs need models on disk", remedy="save them, or give one job")
    everyone = range(len(ingredients.models))
    count = min(jobs, len(everyone))
    plain = replace(running, cache=path, begun=None, heard=None, decided=None, told=None, twice=False)
    study = ingredients.models, ingredients.correspondence
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"))
    try:
        shares = [list(everyone[number::count]) for number in range(count)]
        for done in [pool.submit(_score, *study, share, evaluate, plain, count) for share in shares]:
            done.result()
    except BrokenProcessPool:
        raise errors.EvaluatorError(
            "a process that scored models has died", file=evaluate, remedy="fewer --jobs, if memory is short"
        ) from None
    finally:
        for process in list((pool._processes or {}).values()):  # at once, not after the model they are at
            process.terminate()
        pool.shutdown(cancel_futures=True)


def _score(
    models: Sequence[str], same: Correspondence, share: Sequence[int], evaluate: str, running: Running, processes: int
) -> None:
    """In a process of its own: its share of the models, on its share of the cores; what it prints is for nobody."""
    import torch

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)  # not to outlive who asked
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        ingredients = Ingredients.open(models, None, same)
        scorer = running.scorer(ingredients, evaluate)
        for number in share:
            scorer(ingredients.average([number]), models[number])
