"""``text:FILE``: labelled texts for sequence classifiers. Needs transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    rows: Sequence[Mapping[str, Any]] = field(repr=False)
    options: Options
    form: Form = "state_dict"
    uses_folder: bool = True
    _kept: dict[str, object] = field(default_factory=dict, repr=False)

    @cached_property
    def content(self) -> Mapping[str, Any]:
        return {
            "form": "text", "data": digest_of_files([self.file], self.file.parent),
            "precision": self.options.precision, "limit": self.options.limit, "transformers": hf.version(),
        }  # fmt: skip

    def evaluate(self, model: dict[str, Any] | Path, folder: Path | None = None) -> Scores:
        net, folder = hf.net_of(model, folder, self.endings, self.options, self.name)
        found = []
        with torch.inference_mode():
            for numbers in torch.arange(self.count).split(self.options.batch or BATCH):
                given = {name: one.to(net.device) for name, one in self.inputs(numbers.tolist(), folder).items()}
                found.append(net(**given).logits.float().cpu())
        hf.let_go(net)
        return classified(torch.cat(found), self.labels(net.config))

    @property
    def count(self) -> int:
        """Examples."""
        return len(self.rows)

    @property
    def endings(self) -> tuple[str, ...]:
        """How classes of models are called that it can score."""
        return ("ForSequenceClassification",)

    def labels(self, config: Any) -> Tensor:
        """One for each row, as the config numbers them."""
        names = [str(row["label"]) for row in self.rows]
        return torch.tensor(label_numbers(names, sorted(set(names)), config, self.name))

    def inputs(self, numbers: Sequence[int], folder: Path) -> dict[str, Tensor]:
        """Texts as the model's own tokenizer makes them."""
        if self._kept.get("folder") != folder:
            self._kept.update(folder=folder, tokenizer=hf.tokenizer_of(folder))
        tokenizer: Any = self._kept["tokenizer"]
        rows = [self.rows[number] for number in numbers]
        texts = [[str(row["text"]) for row in rows]]
        texts += [[str(row["text_pair"]) for row in rows]] if all(row.get("text_pair") for row in self.rows) else []
        return dict(tokenizer(*texts, padding=True, truncation=True, return_tensors="pt"))


def load_text(text: str, words: str, options: Options) -> TextEvaluator:
    """Read the rows; what is wrong with their file is told before anything is evaluated."""
    hf.require("transformers")
    path = Path(words).expanduser()
    return TextEvaluator(text, path, hf.rows_of(path, COLUMNS, text)[: options.limit], options)
