"""Scores of models: the seam for whatever measures them, and the cache of what was measured."""

from stockpot.evaluate._base import Evaluator, Learner, Options
from stockpot.evaluate._cache import Entry, ResultCache, content_key, default_cache
from stockpot.evaluate._functions import of_function
from stockpot.evaluate._helpers import with_loader, with_trainer
from stockpot.evaluate._load import load_evaluator, load_learner
from stockpot.evaluate._scores import SCORE, Scores, scores_of
from stockpot.evaluate._selection import Direction, Selection

__all__ = [
    "SCORE",
    "Direction",
    "Entry",
    "Evaluator",
    "Learner",
    "Options",
    "ResultCache",
    "Scores",
    "Selection",
    "content_key",
    "default_cache",
    "load_evaluator",
    "load_learner",
    "of_function",
    "scores_of",
    "with_loader",
    "with_trainer",
]
