"""Scores of models: the seam for whatever measures them, and the cache of what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._later import later
from stockpot.evaluate._base import Evaluator, Learner, Options
from stockpot.evaluate._cache import Entry, ResultCache, content_key, default_cache
from stockpot.evaluate._data import digest_of_files
from stockpot.evaluate._functions import of_function
from stockpot.evaluate._helpers import with_loader, with_trainer
from stockpot.evaluate._load import load_evaluator, load_learner
from stockpot.evaluate._scores import SCORE, Scores, scores_of
from stockpot.evaluate._selection import Direction, Selection

if TYPE_CHECKING:
    from stockpot.evaluate._classify import label_numbers
    from stockpot.evaluate._images import IMAGE_ENDINGS, ImageEvaluator, load_images
    from stockpot.evaluate._transformers import (
        CAUSAL,
        PRECISIONS,
        checkpoint_names,
        config_of,
        let_go,
        model_of,
        placed,
        quietly,
        require,
        rows_of,
        tokenizer_of,
        version,
    )
    from stockpot.evaluate._zero_shot import embedding, zero_shot_head

__all__ = [
    "CAUSAL",
    "IMAGE_ENDINGS",
    "PRECISIONS",
    "SCORE",
    "Direction",
    "Entry",
    "Evaluator",
    "ImageEvaluator",
    "Learner",
    "Options",
    "ResultCache",
    "Scores",
    "Selection",
    "checkpoint_names",
    "config_of",
    "content_key",
    "default_cache",
    "digest_of_files",
    "embedding",
    "label_numbers",
    "let_go",
    "load_evaluator",
    "load_images",
    "load_learner",
    "model_of",
    "of_function",
    "placed",
    "quietly",
    "require",
    "rows_of",
    "scores_of",
    "tokenizer_of",
    "version",
    "with_loader",
    "with_trainer",
    "zero_shot_head",
]

_OF_TRANSFORMERS = (
    "CAUSAL", "PRECISIONS", "checkpoint_names", "config_of", "let_go", "model_of", "placed", "quietly", "require",
    "rows_of", "tokenizer_of", "version",
)  # fmt: skip
_LATER = {
    "label_numbers": "_classify",
    **dict.fromkeys(("IMAGE_ENDINGS", "ImageEvaluator", "load_images"), "_images"),
    **dict.fromkeys(_OF_TRANSFORMERS, "_transformers"),
    **dict.fromkeys(("embedding", "zero_shot_head"), "_zero_shot"),
}
"""They need torch at once."""

__getattr__ = later(__name__, _LATER)
