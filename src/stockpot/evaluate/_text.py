"""``text:FILE``: labelled texts for sequence classifiers. Needs transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from stockpot.evaluate import _transformers as hf
from stockpot.evaluate._base import Form, Options
from stockpot.evaluate._classify import classified, label_numbers
from stockpot.evaluate._data import digest_of_files
from stockpot.evaluate._scores import Scores

BATCH = 32
COLUMNS = ("text", "label")


@dataclass(frozen=True)
class TextEvaluator:
    """Accuracy and loss of a sequence classifier over a CSV or JSONL file with columns ``text`` and ``label`` (and
    ``text_pair``, where every row has it). Labels are numbers, or names in the config.
    """

    name: str
    file: Path
    options: Options
    form: Form = "state_dict"
    uses_folder: bool = True

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """What is scored."""
        return hf.rows_of(self.file, COLUMNS, self.name)[: self.options.limit]

    @cached_property
    def content(self) -> Mapping[str, Any]:
        return {
            "form": "text", "data": digest_of_files([self.file], self.file.parent),
            "precision": self.options.precision, "limit": self.options.limit, "transformers": hf.version(),
        }  # fmt: skip

    def evaluate(self, model: dict[str, Any] | Path, folder: Path | None = None) -> Scores:
        assert isinstance(model, dict)
        hf.require("transformers")
        config = hf.config_of(folder, self.name)
        assert folder is not None
        tokenizer = hf.tokenizer_of(folder)
        built = hf.model_of(config, model, ("ForSequenceClassification",), self.name)
        net = hf.placed(built, self.options.device, self.options.precision)
        names = [str(row["label"]) for row in self.rows]
        labels = torch.tensor(label_numbers(names, sorted(set(names)), config, self.name))
        pairs = all(row.get("text_pair") for row in self.rows)
        found = []
        size = self.options.batch or BATCH
        with torch.inference_mode():
            for start in range(0, len(self.rows), size):
                rows = self.rows[start : start + size]
                texts = [[str(row["text"]) for row in rows]]
                texts += [[str(row["text_pair"]) for row in rows]] if pairs else []
                tokens = tokenizer(*texts, padding=True, truncation=True, return_tensors="pt").to(net.device)
                found.append(net(**tokens).logits.float().cpu())
        return classified(torch.cat(found), labels)
