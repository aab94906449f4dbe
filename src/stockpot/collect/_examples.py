"""Examples as a model takes them: texts, or images of class folders; what is batched has one length, so that nothing is
padded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from stockpot import errors, evaluate

WINDOW = 1024
"""Tokens of one example at most, or what the model can see, if that is less."""
Sort = Literal["text", "image", "language"]
ENDINGS: Mapping[Sort, tuple[str, ...]] = {
    "text": ("ForSequenceClassification",),
    "image": ("ForImageClassification",),
    "language": evaluate.CAUSAL,
}
"""How classes of models are called that examples can be made for."""


class Examples(Protocol):
    """Data of one kind of model."""

    @property
    def lengths(self) -> Sequence[int]:
        """One for each example; examples of equal length can be stacked."""

    @property
    def files(self) -> Sequence[Path]:
        """What they were read from."""

    @property
    def notes(self) -> Sequence[str]:
        """What was cut or left out on the way."""

    def inputs(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Arguments of the model for examples of one length, stacked."""

    def labels(self, numbers: Sequence[int]) -> Tensor:
        """The data's own answers: ``(examples, 1)`` classes, or the tokens that follow each but the last."""


def sort_of(config: Any, model: str) -> Sort:
    """Which kind of examples a model takes, by its architecture."""
    names = tuple(getattr(config, "architectures", None) or ())
    for sort, endings in ENDINGS.items():
        if any(name.endswith(endings) for name in names):
            return sort
    raise errors.InputError(
        "nothing can be collected for this kind of model", file=model,
        expected="a sequence classifier, an image classifier or a causal language model of transformers",
        got=", ".join(names) or "no architecture in config.json",
    )  # fmt: skip


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Numbers of examples, at most ``size`` together, all of one length; the shortest first.

    >>> list(batches([3, 2, 3, 3], 2))
    [[1], [0, 2], [3]]
    """
    alike: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        alike.setdefault(length, []).append(number)
    for length in sorted(alike):
        own = alike[length]
        yield from (own[start : start + size] for start in range(0, len(own), size))


@dataclass(frozen=True)
class Texts:
    """Rows of a JSONL or CSV file, each as the model's own tokenizer makes it; ``answers``: classes, if any."""

    path: Path
    rows: Sequence[dict[str, list[int]]] = field(repr=False)
    answers: Sequence[int] | None = None
    notes: Sequence[str] = ()

    @property
    def files(self) -> Sequence[Path]:
        return (self.path,)

    @property
    def lengths(self) -> Sequence[int]:
        return [len(row["input_ids"]) for row in self.rows]

    def inputs(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        names = [name for name in self.rows[0] if name != "attention_mask"]
        return {name: torch.tensor([self.rows[number][name] for number in numbers]) for name in names}

    def labels(self, numbers: Sequence[int]) -> Tensor:
        if self.answers is None:
            return self.inputs(numbers)["input_ids"][:, 1:]
        return torch.tensor([[self.answers[number]] for number in numbers])


@dataclass(frozen=True)
class Images:
    """Class folders of pictures, each as the model's own processor makes it."""

    evaluator: evaluate.ImageEvaluator
    folder: Path
    config: Any
    notes: Sequence[str] = ()

    @property
    def files(self) -> Sequence[Path]:
        return [path for path, _ in self.evaluator.files]

    @property
    def lengths(self) -> Sequence[int]:
        return [0] * self.evaluator.count

    def inputs(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        return self.evaluator.inputs(numbers, self.folder)

    @cached_property
    def _answers(self) -> Tensor:
        return self.evaluator.labels(self.config)

    def labels(self, numbers: Sequence[int]) -> Tensor:
        return self._answers[list(numbers)][:, None]


def read_examples(data: Path, config: Any, folder: Path, *, limit: int | None, with_labels: bool) -> Examples:
    """What ``data`` holds for the model in ``folder``; InputError kinds where it cannot be used.

    Classifiers of images: FOLDER/CLASS/IMAGE. Of texts: JSONL or CSV, columns ``text`` (``text_pair``) and, where
    labels are asked for, ``label``. Language models: JSONL or CSV with a column ``text``, one example a row, or a plain
    text, cut into windows.
    """
    sort = sort_of(config, str(folder))
    if sort == "image":
        found = evaluate.load_images(str(data), str(data), evaluate.Options(limit=limit))
        return Images(found, folder, config)
    seen = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    tokenizer = evaluate.tokenizer_of(folder)
    most = min(WINDOW, seen or WINDOW, tokenizer.model_max_length)
    if sort == "text":
        return _classified(data, config, tokenizer, most, limit, with_labels)
    return _language(data, tokenizer, most, limit)


def _classified(data: Path, config: Any, tokenizer: Any, most: int, limit: int | None, with_labels: bool) -> Texts:
    rows = evaluate.rows_of(data, ("text", "label") if with_labels else ("text",), str(data))[:limit]
    columns = ("text", "text_pair") if all(row.get("text_pair") for row in rows) else ("text",)
    encoded, notes = _encoded(tokenizer, [[str(row[name]) for name in columns] for row in rows], most)
    answers: Sequence[int] = [0] * len(rows)
    if with_labels:
        names = [str(row["label"]) for row in rows]
        answers = evaluate.label_numbers(names, sorted(set(names)), config, str(data))
    return Texts(data, encoded, answers, notes)


def _language(data: Path, tokenizer: Any, most: int, limit: int | None) -> Texts:
    if data.suffix in (".jsonl", ".csv"):
        rows = evaluate.rows_of(data, ("text",), str(data))[:limit]
        encoded, notes = _encoded(tokenizer, [[str(row["text"])] for row in rows], most)
    else:
        ((whole,), notes) = _encoded(tokenizer, [[_text(data)]], None)
        places = range(0, len(whole["input_ids"]), most)
        encoded = [{name: values[start : start + most] for name, values in whole.items()} for start in places][:limit]
    long = [{"input_ids": row["input_ids"]} for row in encoded if len(row["input_ids"]) > 1]
    if short := len(encoded) - len(long):
        notes = [*notes, f"{short} of {len(encoded)} examples have fewer than two tokens: left out"]
    if not long:
        raise errors.InputError("the data are empty", file=str(data), expected="two tokens or more")
    return Texts(data, long, None, notes)


def _encoded(
    tokenizer: Any, texts: Sequence[Sequence[str]], most: int | None
) -> tuple[list[dict[str, list[int]]], list[str]]:
    """Each text (or pair) by itself, not padded; what is longer than ``most`` is cut, and told."""
    found, cut = [], 0
    with evaluate.quietly():  # the library's own word about long texts comes too early
        for text in texts:
            row = dict(tokenizer(*text, padding=False, truncation=False))
            if most is not None and len(row["input_ids"]) > most:
                row = dict(tokenizer(*text, padding=False, truncation=True, max_length=most))
                cut += 1
            found.append(row)
    return found, [f"{cut} of {len(texts)} texts are longer than {most} tokens: cut there"] if cut else []


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise errors.NotFoundError("no such data file", file=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise errors.InputError(f"the data cannot be read ({error})", file=str(path)) from None
