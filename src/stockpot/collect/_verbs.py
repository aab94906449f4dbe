"""``collect_fisher`` and ``collect_inputs``: open a model, read data, measure, write a file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from stockpot import engine, errors, evaluate
from stockpot.adapters import open_source
from stockpot.checkpoint import Source
from stockpot.collect._examples import ENDINGS, Examples, Sort, read_examples, sort_of
from stockpot.collect._fisher import Labels, Progress, diagonal_fisher
from stockpot.collect._inputs import layer_inputs
from stockpot.collect._statistics import check_place, write_statistics
from stockpot.recipe import Ref, build_recipe

BATCH = 8
DTYPES = {**evaluate.PRECISIONS, "float64": torch.float64}
_LOADING_BYTES = 192 << 20


@dataclass(frozen=True)
class Collected:
    """What was written: ``kind`` fisher or inputs, ``examples`` that were used, ``left_out`` parameters and why."""

    out: Path
    kind: str
    model: str
    examples: int
    tensors: int
    bytes_written: int
    seconds: float
    left_out: Mapping[str, str]
    warnings: tuple[str, ...]

    def record(self) -> dict[str, object]:
        """The result as data, for ``--json``."""
        return {
            "out": str(self.out),
            "kind": self.kind,
            "model": self.model,
            "examples": self.examples,
            "tensors": self.tensors,
            "bytes_written": self.bytes_written,
            "seconds": round(self.seconds, 3),
            "left_out": dict(self.left_out),
        }


def collect_fisher(
    model: Ref,
    *,
    data: str | Path,
    out: str | Path,
    labels: Labels = "sampled",
    samples: int = 1,
    seed: int = 0,
    limit: int | None = None,
    batch: int = BATCH,
    device: str = "cpu",
    dtype: str = "float32",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Collected:
    """Write the diagonal Fisher values of a model's parameters on data, for ``fisher`` merging.

    F = (1/n) sum_x E_{y ~ p(y|x)} (d log p(y|x) / d w)^2, of each example by itself, never of a batch.

    Arguments: ``model``, a folder, file or Hub id with its config and tokenizer or image processor; ``data``: for
    classifiers of texts a JSONL or CSV file with a column ``text``, of images FOLDER/CLASS/IMAGE, for causal language
    models a text or a JSONL or CSV file with a column ``text``, an example a row; ``out``, a ``.safetensors`` file;
    ``labels``: ``sampled`` from the model's own answers (default: right in the mean, at the cost of one gradient),
    ``exact`` for the expectation over all classes (classifiers; as many gradients as classes), ``given`` for the data's
    own, the empirical Fisher; ``samples`` drawn for each example; ``seed`` of the draws; ``limit`` of examples;
    ``batch``, examples differentiated together; ``dtype`` of the arithmetic (float32; sums are float64 always).
    Returns a Collected. Raises InputError kinds before weights are read. The file has float32 values, named as the
    checkpoint's tensors, tied ones once; the same call writes the same bytes. Cost: ``samples`` gradients an example;
    memory is the model, 8 bytes a parameter, a gradient for each example of a batch, and torch.
    Reference: Matena and Raffel, Merging models with Fisher-weighted averaging, arXiv 2111.09832.

    >>> stockpot.collect_fisher("ft1", data="dev.jsonl", out="ft1-fisher.safetensors")  # doctest: +SKIP
    """
    if labels not in get_args(Labels):
        raise errors.unknown_name("kind of labels", labels, get_args(Labels))
    _require(samples > 0, "samples", "1 or more", samples)
    _require(labels == "sampled" or samples == 1, "samples", f"1, since {labels} draws none", samples)
    _require(seed >= 0, "seed", "0 or more", seed)
    subject = _Subject.open(model, Path(data).expanduser(), Path(out).expanduser(), limit, batch, dtype, overwrite)
    if labels == "exact" and subject.sort == "language":
        raise errors.UsageError(
            "exact is for classifiers", expected="sampled or given for a language model", got="exact",
            remedy="--labels sampled, with more --samples where they are too rough",
        )  # fmt: skip
    examples = subject.examples(with_labels=labels == "given")
    net, names = subject.load(device)
    found, notes = diagonal_fisher(
        net, examples, labels=labels, samples=samples, seed=seed, batch=batch, progress=progress
    )
    kept = {names[name]: _rounded(values, names[name]) for name, values in found.items()}
    about = {"labels": labels, "samples": samples, "seed": seed}
    return subject.write("fisher", kept, examples, about, {}, notes)


def collect_inputs(
    model: Ref,
    *,
    data: str | Path,
    out: str | Path,
    limit: int | None = None,
    batch: int = BATCH,
    device: str = "cpu",
    dtype: str = "float32",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Collected:
    """Write the Gram matrices of what a model's linear layers are given on data, for ``regmean`` merging.

    G = X^T X, summed over all rows (tokens, places, examples) that pass a layer; nothing is padded.

    Arguments: as ``collect_fisher``. Returns a Collected; its ``left_out`` names every parameter of two dimensions or
    more that has no Gram matrix, and why. Raises InputError kinds before weights are read. The file has float64 values
    under the names of the layers' weights; its metadata says of how many rows, and which weights lie with their inputs
    first (``Conv1D``). Cost: one pass forward; memory is the model, its activations, 8 bytes x inputs^2 for each
    layer, and torch. Reference: Jin et al., Dataless knowledge fusion, arXiv 2212.09849.

    >>> stockpot.collect_inputs("ft1", data="dev.jsonl", out="ft1-inputs.safetensors")  # doctest: +SKIP
    """
    subject = _Subject.open(model, Path(data).expanduser(), Path(out).expanduser(), limit, batch, dtype, overwrite)
    examples = subject.examples(with_labels=False)
    net, names = subject.load(device)
    found = layer_inputs(net, examples, batch=subject.together(net, batch), progress=progress)
    kept = {names[name]: gram for name, gram in found.grams.items()}
    about = {
        "rows": {names[name]: count for name, count in found.rows.items()},
        "transposed": sorted(names[name] for name in found.transposed),
    }
    return subject.write("inputs", kept, examples, about, {names[n]: why for n, why in found.left_out.items()}, [])


@dataclass(frozen=True)
class _Subject:
    """A model, the data that it is measured on, and where that is written; on this machine, not read yet."""

    source: Source
    config: Any
    sort: Sort
    data: Path
    out: Path
    limit: int | None
    dtype: str
    overwrite: bool
    begun: float

    @classmethod
    def open(
        cls, model: Ref, data: Path, out: Path, limit: int | None, batch: int, dtype: str, overwrite: bool
    ) -> _Subject:
        begun = time.perf_counter()
        evaluate.require("transformers")
        _require(limit is None or limit > 0, "limit", "1 or more", limit)
        _require(batch > 0, "batch", "1 or more", batch)
        if dtype not in DTYPES:
            raise errors.unknown_name("dtype", dtype, DTYPES)
        source = open_source(model)
        check_place(out, [*source.roots, data], overwrite)
        config = evaluate.config_of(source.folder, str(model))
        sort = sort_of(config, str(model))
        if not data.exists():
            raise errors.NotFoundError("no such data", file=str(data))
        here = engine.fetched_sources({source.ref: source})[source.ref]
        return cls(here, config, sort, data, out, limit, dtype, overwrite, begun)

    def examples(self, *, with_labels: bool) -> Examples:
        """The data, as the model's own tokenizer or processor makes them."""
        assert self.source.folder is not None  # or there would be no config
        return read_examples(self.data, self.config, self.source.folder, limit=self.limit, with_labels=with_labels)

    def load(self, device: str) -> tuple[Any, dict[str, str]]:
        """The model in its arithmetic, and the checkpoint's names of its parameters."""
        recipe = build_recipe("linear", base=None, models=[self.source.ref], dtype=self.dtype)
        job = engine.resolve(recipe)
        inputs = engine.open_inputs(job, {self.source.ref: self.source})
        plan = engine.make_plan(job, inputs, Path("memory"), memory=_LOADING_BYTES, workers=None)
        weights, _ = engine.to_memory(plan)
        self.config.dtype = DTYPES[self.dtype]
        self.config.use_cache = False
        self.config._attn_implementation = "eager"  # the fused ones have no rule for many gradients at once
        net = evaluate.model_of(self.config, weights, ENDINGS[self.sort], self.source.ref)
        names = evaluate.checkpoint_names(net, weights)
        return evaluate.placed(net, device, None), names

    def together(self, net: Any, batch: int) -> int:
        """Examples in one pass forward: a classifier finds the ends of several texts only by their padding."""
        return 1 if self.sort == "text" and getattr(net.config, "pad_token_id", None) is None else batch

    def write(
        self,
        kind: str,
        tensors: Mapping[str, Tensor],
        examples: Examples,
        about: Mapping[str, Any],
        left_out: Mapping[str, str],
        notes: list[str],
    ) -> Collected:
        """The file, in the checkpoint's order of names."""
        order = {name: place for place, name in enumerate(self.source.tensors)}
        kept = dict(sorted(tensors.items(), key=lambda item: order.get(item[0], len(order))))
        count = len(examples.lengths)
        files = [Path(file.path) for file in self.source.files]
        told = {
            "kind": kind,
            "model": self.source.ref,
            "model_digest": evaluate.content_key({"files": [engine.file_digest(str(path)) for path in files]}),
            "data": str(self.data),
            "data_digest": evaluate.digest_of_files(
                examples.files, self.data if self.data.is_dir() else self.data.parent
            ),
            "examples": count,
            "dtype": self.dtype,
            "transformers": evaluate.version(),
            "torch": torch.__version__,
            **about,
        }
        size = write_statistics(self.out, kept, told, overwrite=self.overwrite)
        return Collected(
            self.out,
            kind,
            self.source.ref,
            count,
            len(kept),
            size,
            time.perf_counter() - self.begun,
            left_out,
            (*self.source.notes, *examples.notes, *notes),
        )


def _require(good: bool, name: str, expected: str, got: object) -> None:
    if not good:
        raise errors.ParameterError(f"--{name} of collect", expected=expected, got=got)


def _rounded(values: Tensor, name: str) -> Tensor:
    """In float32, for the file."""
    found = values.float()
    if not bool(torch.isfinite(found).all()):
        raise errors.NonFiniteError(
            "a Fisher value is not finite, or does not fit float32", tensor=name,
            remedy="check the weights, or choose a wider --dtype",
        )  # fmt: skip
    return found
