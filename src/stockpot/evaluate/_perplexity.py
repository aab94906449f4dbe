"""``perplexity:FILE``: how surprised a causal language model is by a text. Needs transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from stockpot import errors
from stockpot.evaluate import _transformers as hf
from stockpot.evaluate._base import Form, Options
from stockpot.evaluate._data import digest_of_files
from stockpot.evaluate._scores import Scores

BATCH = 8
WINDOW = 1024
"""Tokens seen together, or what the model can see, if that is less."""


@dataclass(frozen=True)
class PerplexityEvaluator:
    """Mean loss a token in nats, and its exponential.

    The text (a ``.jsonl`` or ``.csv`` file: column ``text``, joined by blank lines) is cut into windows of up to 1,024
    tokens, side by side; each token but a window's first is predicted from those before it in the window. ``limit``
    bounds the windows. Less is better: ``--select perplexity:min``.
    """

    name: str
    file: Path
    text: str = field(repr=False)
    options: Options
    form: Form = "state_dict"
    uses_folder: bool = True

    @cached_property
    def content(self) -> Mapping[str, Any]:
        return {
            "form": "perplexity", "data": digest_of_files([self.file], self.file.parent),
            "precision": self.options.precision, "limit": self.options.limit, "transformers": hf.version(),
        }  # fmt: skip

    def evaluate(self, model: dict[str, Any] | Path, folder: Path | None = None) -> Scores:
        net, folder = hf.net_of(model, folder, hf.CAUSAL, self.options, self.name)
        with hf.quietly():
            tokens = hf.tokenizer_of(folder)(self.text, return_tensors="pt", truncation=False)["input_ids"][0]
        window = min(WINDOW, getattr(net.config, "max_position_embeddings", None) or WINDOW)
        windows = [one for one in tokens.split(window) if len(one) > 1][: self.options.limit]
        if not windows:
            raise errors.InputError("the text is too short", file=str(self.file), expected="two tokens or more")
        total, count = 0.0, 0
        size = self.options.batch or BATCH
        with torch.inference_mode():
            full = [one for one in windows if len(one) == window]
            batches = [torch.stack(full[start : start + size]) for start in range(0, len(full), size)]
            batches += [one[None] for one in windows if len(one) < window]
            for batch in batches:
                logits = net(input_ids=batch.to(net.device)).logits[:, :-1].float().cpu()
                goal = batch[:, 1:]
                total += F.cross_entropy(logits.flatten(0, 1), goal.flatten(), reduction="sum").double().item()
                count += goal.numel()
        hf.let_go(net)
        loss = total / count
        return Scores({"perplexity": math.exp(min(loss, 700.0)), "loss": loss})


def load_perplexity(text: str, words: str, options: Options) -> PerplexityEvaluator:
    """Read the text; what is wrong with its file is told before anything is evaluated."""
    hf.require("transformers")
    path = Path(words).expanduser()
    if path.suffix in (".jsonl", ".csv"):
        read = "\n\n".join(str(row["text"]) for row in hf.rows_of(path, ("text",), text))
        return PerplexityEvaluator(text, path, read, options)
    try:
        return PerplexityEvaluator(text, path, path.read_text("utf-8"), options)
    except FileNotFoundError:
        raise errors.NotFoundError("no such data file", file=str(path), got=text) from None
    except (OSError, UnicodeDecodeError) as error:
        raise errors.InputError(f"the data cannot be read ({error})", file=str(path)) from None
