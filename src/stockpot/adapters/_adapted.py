"""``BASE+ADAPTER``: a source whose tensors are the base's with the adapter applied, computed as they are read.

A changed weight is W + s B A in float64 (each element a sum over the rank, in order), and is given as float64: the one
rounding is that of whoever writes it. Nothing is written in between, and no weight is ever whole in memory.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stockpot import errors
from stockpot.adapters._peft import Adapter, LowRank
from stockpot.adapters._values import WIDE, matrix_of, values_of
from stockpot.checkpoint import (
    EMBEDDINGS,
    HEADS,
    TORCH_NAMES,
    FileIdentity,
    LastGathered,
    Part,
    Source,
    TensorInfo,
    View,
    count,
    is_mergeable,
    itemsize,
    nbytes,
    read_dense,
    ties_words,
    together,
)
from stockpot.kernels import Factors, Row, add_low_rank, factors, widened
from stockpot.measure import Array

KEPT = 8
"""Pairs of factors in memory: of as many tensors as are worked on at once."""


@dataclass(frozen=True, slots=True)
class _Changed:
    """A tensor of the base (or one that the adapter has in its place), and what is added to it."""

    source: Source
    base: TensorInfo
    product: LowRank | None
    added: tuple[TensorInfo, float] | None
    turned: bool = False
    """Whether the weight is stored (in, out): the product is then that of the transposed factors."""


class _Scratch(threading.local):
    """Memory of one thread, used again: pages touched for the first time cost more than the arithmetic."""

    def __init__(self) -> None:
        self.data = np.empty(0, np.uint8)

    def room(self, size: int) -> NDArray[np.uint8]:
        """So many bytes."""
        if self.data.size < size:
            self.data = np.empty(size, np.uint8)
        return self.data[:size]


@dataclass(frozen=True)
class AdaptedCheckpoint:
    """A base with a LoRA adapter on it, as a source."""

    ref: str
    base: Source
    adapter: Adapter
    tensors: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]
    notes: tuple[str, ...]
    changed: Mapping[str, _Changed] = field(repr=False)
    replaced: Mapping[str, TensorInfo] = field(repr=False)
    _factors: OrderedDict[str, Factors] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _gathered: LastGathered[str] = field(default_factory=LastGathered, repr=False)
    _scratch: _Scratch = field(default_factory=_Scratch, repr=False)

    @property
    def roots(self) -> tuple[Path, ...]:
        """Those of both."""
        return (*self.base.roots, *self.adapter.source.roots)

    @property
    def files(self) -> tuple[FileIdentity, ...]:
        """The base's, then the adapter's."""
        return (*self.base.files, *self.adapter.source.files)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The base's."""
        return self.base.parts

    @property
    def folder(self) -> Path | None:
        """The base's: the result is such a model."""
        return self.base.folder

    @property
    def is_pickle(self) -> bool:
        """Whether the base is."""
        return self.base.is_pickle

    @property
    def working_bytes(self) -> int:
        """Of the factors that are kept, of a strided tensor that is gathered, and of the base's own work."""
        sizes = [
            8 * (count(one.product.a.shape) + count(one.product.b.shape))
            for one in self.changed.values()
            if one.product
        ]
        strided = [one.base for one in self.changed.values() if one.base.strides is not None]
        dense = max((info.nbytes + info.size_bytes for info in strided), default=0)
        return KEPT * max(sizes, default=0) + dense + self.base.working_bytes

    @property
    def commit(self) -> str:
        """Those of both, joined as they are in ``ref``; nothing where neither is on a hub."""
        found = f"{self.base.commit}+{self.adapter.source.commit}"
        return found if found.strip("+") else ""

    def downloads(self, *, side_files: bool) -> dict[str, int]:
        """What both lack."""
        return together([self.base.downloads(side_files=side_files), self.adapter.source.downloads(side_files=False)])

    def fetched(self, *, side_files: bool = True) -> AdaptedCheckpoint:
        """Both on this machine, with the base's side files."""
        base, own = self.base.fetched(side_files=side_files), self.adapter.source.fetched(side_files=False)
        if base is self.base and own is self.adapter.source:
            return self
        return replace(adapted(self.ref, base, replace(self.adapter, source=own)), notes=self.notes)

    def read_into(self, info: TensorInfo, start: int, out: memoryview) -> None:
        """Fill ``out`` with bytes of a tensor, from its byte ``start`` on."""
        if info.name in self.replaced:
            self.adapter.source.read_into(self.replaced[info.name], start, out)
        elif (change := self.changed.get(info.name)) is None:
            self.base.read_into(info, start, out)
        else:
            size = itemsize(WIDE)
            first, last = start // size, -(-(start + len(out)) // size)
            room = np.frombuffer(out, np.uint8)
            fits = not (start % size or len(out) % size or room.ctypes.data % size)
            values = room.view(np.float64) if fits else np.empty(last - first)
            self._compute(info.name, change, first, values)
            if not fits:
                room[:] = values.view(np.uint8)[start - first * size :][: len(out)]

    def _compute(self, name: str, change: _Changed, first: int, out: Array) -> None:
        """Elements of a changed tensor, from the one at ``first`` on."""
        item = itemsize(change.base.dtype)
        if change.base.strides is not None:
            dense = self._gathered.get(name, lambda: read_dense(change.source, change.base))
            data = dense[first * item : (first + out.size) * item]
        else:
            data = self._scratch.room(out.size * item)
            change.source.read_into(change.base, first * item, data.data)
        row = Row(TORCH_NAMES[change.base.dtype], data)
        if change.product is not None:
            add_low_rank(row, out, first, self._pair(name, change.product, change.turned), change.product.scale)
        else:
            out[:] = widened(row)
        if change.added is not None:
            bias, scale = change.added
            out += scale * values_of(self.adapter.source, bias, first, first + out.size)

    def _pair(self, name: str, product: LowRank, turned: bool) -> Factors:
        """The factors of a tensor: (rows, rank) and (rank, columns)."""
        with self._lock:
            found = self._factors.get(name)
        if found is None:
            a, b = (matrix_of(self.adapter.source, info) for info in (product.a, product.b))
            left, right = (a.T, b.T) if turned else (b, a)
            found = factors(left, right, exact=WIDE not in (product.a.dtype, product.b.dtype))
        with self._lock:
            self._factors[name] = found
            self._factors.move_to_end(name)
            while len(self._factors) > KEPT:
                self._factors.popitem(last=False)
        return found

    def view(self, info: TensorInfo, start: int, size: int) -> View | None:
        """Bytes where they are, of tensors that are not computed."""
        if info.name in self.replaced:
            return self.adapter.source.view(self.replaced[info.name], start, size)
        return None if info.name in self.changed else self.base.view(info, start, size)

    def drop_views(self, infos: Sequence[TensorInfo]) -> None:
        """Viewed tensors are not needed for now."""
        own = [self.replaced[info.name] for info in infos if info.name in self.replaced]
        self.adapter.source.drop_views(own)
        self.base.drop_views([info for info in infos if info.name not in self.replaced])

    def close(self) -> None:
        """Close both."""
        self.base.close()
        self.adapter.source.close()


def adapted(ref: str, base: Source, adapter: Adapter) -> AdaptedCheckpoint:
    """Put an adapter on a base; raises AdapterError where they do not fit, naming the tensor."""
    adapter, notes = _fitted(base, adapter)
    known = {**base.tensors, **{alias: base.tensors[kept] for alias, kept in base.aliases.items()}}
    replaced = dict(adapter.replaced)
    changed: dict[str, _Changed] = {}
    turned = _turned(base, adapter, known)
    for name in dict.fromkeys((*adapter.products, *adapter.added)):
        source, info = (adapter.source, replaced.pop(name)) if name in replaced else (base, known.get(name))
        if info is None:
            raise _unfit(base, adapter, "the adapter changes a tensor that the base lacks", name)
        if not is_mergeable(info.dtype):
            raise _unfit(base, adapter, "the adapter changes a tensor that is no plain float", name, got=info.dtype)
        product, added = adapter.products.get(name), adapter.added.get(name)
        if added is not None and added[0].shape != info.shape:
            raise _unfit(base, adapter, "a bias of another shape", name, info.shape, added[0].shape)
        changed[name] = _Changed(source, info, product, added, turned.get(name, False))
    for name, info in replaced.items():
        if name in known and known[name].shape != info.shape:
            raise _unfit(base, adapter, "a tensor of another shape", name, known[name].shape, info.shape)
    _require_untied(base, adapter, {*changed, *replaced})
    tensors = dict(base.tensors)
    for name, one in changed.items():
        shape, file = one.base.shape, tensors[name].file if name in tensors else one.base.file
        tensors[name] = TensorInfo(name, WIDE, shape, file, 0, nbytes(WIDE, shape), None, one.base.output_dtype)
    for name, info in replaced.items():
        # Laid out where the base has it, so that the output's files are the base's.
        tensors[name] = replace(info, name=name, file=known[name].file if name in known else len(base.files) - 1)
    return AdaptedCheckpoint(ref, base, adapter, tensors, base.aliases, (*base.notes, *notes), changed, replaced)


def _unfit(
    base: Source, adapter: Adapter, what: str, name: str, expected: object = None, got: object = None
) -> errors.AdapterError:
    return errors.AdapterError(
        what, tensor=name, file=adapter.source.ref,
        expected=f"a tensor of {base.ref}" if expected is None and got is None else expected, got=got,
        remedy="is it an adapter of this base?",
    )  # fmt: skip


CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "convbert", "clvp")
CONV1D_LAYERS = ("c_attn", "c_proj", "c_fc", "q_attn")
"""Where transformers stores weights (in, out): asked where a weight is square and no other module is called alike."""


def _turned(base: Source, adapter: Adapter, known: Mapping[str, TensorInfo]) -> dict[str, bool]:
    """Whether each weight is stored (in, out), so that its product is that of the transposed factors.

    Shapes tell, but of square weights. Of those other modules of the same last name tell, then what is known of the
    model, and at last the configuration, whose one flag PEFT sets anew at every module.
    """
    found: dict[str, bool] = {}
    square: list[str] = []
    by_leaf: dict[str, bool] = {}
    for name, product in adapter.products.items():
        info = adapter.replaced.get(name) or known.get(name)
        if info is None:
            raise _unfit(base, adapter, "the adapter changes a tensor that the base lacks", name)
        out, into = product.b.shape[0], count(product.a.shape[1:])
        straight = len(info.shape) > 1 and info.shape[0] == out and count(info.shape[1:]) == into
        turned = info.shape == (into, out)
        if not (turned if product.embedding else straight or turned):
            raise _unfit(base, adapter, "the factors do not fit the weight", name, list(info.shape), f"({out}, {into})")
        if straight and turned and not product.embedding:
            square.append(name)
            continue
        found[name] = not straight or product.embedding
        if not product.embedding:
            by_leaf[_leaf(name)] = found[name]
    kind = base.parts[0].config.get("model_type")
    for name in square:
        leaf = _leaf(name)
        if leaf in by_leaf:
            found[name] = by_leaf[leaf]
        else:
            is_conv1d = kind in CONV1D_MODELS and leaf in CONV1D_LAYERS
            found[name] = is_conv1d if isinstance(kind, str) else adapter.config.fan_in_fan_out
    return found


def _leaf(name: str) -> str:
    """The module's own name."""
    return name.split(".")[-2] if "." in name else name


def _require_untied(base: Source, adapter: Adapter, touched: set[str]) -> None:
    """A tensor that the base ties to another cannot be changed alone: who loads the result ties them again."""
    tied = {name for pair in base.aliases.items() for name in pair}
    if ties_words(base.parts[0].config):
        tied |= {name for name in touched if any(f".{name}".endswith(f".{end}") for end in (*HEADS, *EMBEDDINGS))}
    for name in sorted(touched & tied):
        raise errors.AdapterError(
            "the adapter changes a tensor that its base ties to another", tensor=name, file=adapter.source.ref,
            remedy="merge it into its base where it was made (merge_and_unload), and give that",
        )  # fmt: skip


def _fitted(base: Source, adapter: Adapter) -> tuple[Adapter, tuple[str, ...]]:
    """The adapter by the base's names, which may have one prefix more or less than the model that was trained."""
    known = {*base.tensors, *base.aliases}
    wanted = [name for name in (*adapter.products, *adapter.added) if name not in adapter.replaced]
    if not wanted or all(name in known for name in wanted):
        return adapter, ()
    for old, new in _prefixes(wanted, known):

        def renamed(name: str, old: str = old, new: str = new) -> str:
            found = new + name.removeprefix(old)
            return found if name.startswith(old) and found in known else name

        if all(renamed(name) in known for name in wanted):
            fitted = replace(
                adapter,
                products={renamed(name): one for name, one in adapter.products.items()},
                added={renamed(name): one for name, one in adapter.added.items()},
                replaced={renamed(name): one for name, one in adapter.replaced.items()},
            )
            said = f"names without {old!r}" if old else f"names with {new!r} before them"
            return fitted, (f"{adapter.source.ref}: {said}, as the base has them",)
    lacking = [name for name in wanted if name not in known]
    raise errors.AdapterError(
        "the adapter changes what the base lacks", tensor=lacking[0], file=adapter.source.ref,
        expected=f"tensors of {base.ref}", got=f"{len(lacking)} of {len(wanted)} names that are not there",
        remedy="is it one of this base? Where its library names weights otherwise than their file does, merge it "
        "there (merge_and_unload)",
        problems=lacking[1:],
    )  # fmt: skip


def _prefixes(wanted: Sequence[str], known: set[str]) -> Iterator[tuple[str, str]]:
    """(taken off, put on): leading components that the one has and the other lacks."""
    for names, is_known in ((wanted, False), (known, True)):
        depths = {".".join(name.split(".")[:depth]) + "." for name in names for depth in (1, 2)}
        for prefix in sorted(depths):
            yield ("", prefix) if is_known else (prefix, "")
