"""Several adapters as one: the sum of their products, never of their factors apart.

The task vector of adapter i at a module is P_i = s_i B_i A_i. Inner products of task vectors follow from the factors
alone, <P_i, P_j> = s_i s_j sum((B_i^T B_j) * (A_i A_j^T)), so that a method's coefficients c_i need no weight of the
base. The result sum c_i P_i = [c_1 s_1 B_1 ..] [A_1; ..] has the sum of the ranks; a smaller rank is its best
approximation (SVD of the small core of two QR factorisations), and what is lost is told.
"""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stockpot import errors
from stockpot.adapters._peft import Adapter, LowRank
from stockpot.adapters._values import WIDE, matrix_of, values_of
from stockpot.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_STEM,
    FileIdentity,
    Part,
    TensorInfo,
    View,
    count,
    itemsize,
    nbytes,
    together,
    widest,
)
from stockpot.measure import Array
from stockpot.methods import Mixture

WHERE = ("target_modules", "layers_to_transform", "layers_pattern", "exclude_modules")
"""What a configuration says of where its modules are."""
KEPT = 4
"""Modules whose new factors are in memory."""
Mixing = Callable[[Array], Mixture]
"""Coefficients of a group from its inner products, shape (N+1, N+1): row and column 0 are the base's, and zero."""


@dataclass(frozen=True)
class _Module:
    """A module that some adapters change: its products (None where one does not), and the new rank."""

    name: str
    group: str
    products: tuple[LowRank | None, ...]
    rank: int

    @property
    def first(self) -> LowRank:
        """Whose names and shapes the result takes."""
        return next(product for product in self.products if product is not None)


@dataclass(frozen=True)
class _Whole:
    """A tensor that all adapters have in place of the base's, or add to it: scales are those of additions."""

    infos: tuple[TensorInfo | None, ...]
    scales: tuple[float, ...]
    group: str
    is_added: bool


@dataclass(frozen=True)
class Loss:
    """What a smaller rank took away: Frobenius norm of the difference over that of the sum, in all and where most."""

    rank: int
    relative_error: float
    largest: float
    module: str

    def data(self) -> dict[str, object]:
        """Plain values."""
        return {
            "rank": self.rank,
            "relative_error": self.relative_error,
            "largest": self.largest,
            "module": self.module,
        }


class AdapterSum:
    """The merge of several adapters, as a source: new factors, computed where they are read."""

    def __init__(
        self, adapters: Sequence[Adapter], mixing: Mixing, group_of: Callable[[str], str], rank: int | None
    ) -> None:
        self._adapters = tuple(adapters)
        self._mixing, self._group_of, self._rank = mixing, group_of, rank
        self._modules: dict[str, _Module] = {}
        self._wholes: dict[str, _Whole] = {}
        self._groups: dict[str, list[str]] = {}
        self._roles: dict[str, tuple[str, str]] = {}
        self._mixtures: dict[str, Mixture] = {}
        self._norms: dict[str, tuple[float, float]] = {}
        self._made: OrderedDict[str, tuple[Array, Array]] = OrderedDict()
        self._lock = threading.RLock()
        self.sources = sources = tuple(adapter.source for adapter in adapters)
        self.ref = sources[0].ref
        self.files: tuple[FileIdentity, ...] = tuple(file for source in sources for file in source.files)
        self.roots: tuple[Path, ...] = tuple(root for source in sources for root in source.roots)
        self.folder = sources[0].folder
        self.is_pickle = False
        self.aliases: Mapping[str, str] = {}
        self.notes = (*(note for source in sources for note in source.notes), *_other_bases(self._adapters))
        self.parts = (Part(stem=ADAPTER_STEM, metadata=sources[0].parts[0].metadata),)
        self.tensors: dict[str, TensorInfo] = {}
        _require_alike(self._adapters)
        self._lay_out(group_of, rank)

    @property
    def working_bytes(self) -> int:
        """Factors of all adapters and the new ones, of the modules that are kept."""
        sizes = [
            count(product.a.shape) + count(product.b.shape)
            for module in self._modules.values()
            for product in module.products
            if product is not None
        ]
        return 8 * 3 * KEPT * max(sizes, default=0) * len(self._adapters)

    @property
    def commit(self) -> str:
        """What is on a hub are the adapters, each at its own."""
        return ""

    def downloads(self, *, side_files: bool) -> dict[str, int]:
        """What the adapters lack; side files are the first one's."""
        return together(one.downloads(side_files=side_files and not n) for n, one in enumerate(self.sources))

    def fetched(self, *, side_files: bool = True) -> AdapterSum:
        """All of them on this machine."""
        here = [one.fetched(side_files=side_files and one is self.sources[0]) for one in self.sources]
        if all(one is other for one, other in zip(here, self.sources, strict=True)):
            return self
        adapters = [replace(own, source=source) for own, source in zip(self._adapters, here, strict=True)]
        return AdapterSum(adapters, self._mixing, self._group_of, self._rank)

    @property
    def own_files(self) -> dict[str, bytes]:
        """``adapter_config.json`` of the result: the first one's, with the new ranks, scaled by nothing."""
        stated: dict[str, Any] = dict(self._adapters[0].stated)
        ranks = {name: module.rank for name, module in self._modules.items()}
        usual = max(ranks.values(), default=stated.get("r", 8))
        others = {_pattern(name): rank for name, rank in ranks.items() if rank != usual}
        stated.update(
            r=usual,
            lora_alpha=usual,
            use_rslora=False,
            rank_pattern=others,
            alpha_pattern=dict(others),
            init_lora_weights=True,
        )
        where = [tuple(map(_plain, map(adapter.stated.get, WHERE))) for adapter in self._adapters]
        if any(one != where[0] for one in where):
            stated.update(dict.fromkeys(WHERE), target_modules=sorted(self._modules))
        if any(role == "added" for _, role in self._roles.values()):
            stated["lora_bias"] = True
        whole = [adapter.stated.get("modules_to_save") or [] for adapter in self._adapters]
        stated["modules_to_save"] = sorted({name for names in whole for name in names}) or None
        return {ADAPTER_CONFIG: (json.dumps(stated, indent=2, sort_keys=True) + "\n").encode()}

    def _lay_out(self, group_of: Callable[[str], str], rank: int | None) -> None:
        """Names, shapes and ranks of the result; raises AdapterError where adapters do not fit each other."""
        targets = dict.fromkeys(name for adapter in self._adapters for name in adapter.products)
        for target in targets:
            products = tuple(adapter.products.get(target) for adapter in self._adapters)
            first = next(product for product in products if product is not None)
            for adapter, product in zip(self._adapters, products, strict=True):
                if product is not None and _outline(product) != _outline(first):
                    raise errors.AdapterError(
                        "the adapters change a weight in different shapes", tensor=target, file=adapter.source.ref,
                        expected=_outline(first), got=_outline(product),
                    )  # fmt: skip
            out, into = first.b.shape[0], count(first.a.shape[1:])
            total = sum(product.rank for product in products if product is not None)
            module = _Module(first.module, group_of(target), products, min(rank or total, total, out, into))
            self._modules[first.module] = module
            self._groups.setdefault(module.group, []).append(first.module)
            found = [info for product in products if product is not None for info in (product.a, product.b)]
            nominal = widest([info.output_dtype for info in found])
            self._add(first.a.name, (module.rank, *first.a.shape[1:]), nominal, first.module, "a")
            self._add(first.b.name, (out, module.rank, *first.b.shape[2:]), nominal, first.module, "b")
        for adapter in self._adapters:
            for name in (*adapter.added, *adapter.replaced):
                self._lay_out_whole(name, group_of)

    def _lay_out_whole(self, name: str, group_of: Callable[[str], str]) -> None:
        if name in self._wholes:
            return
        added = [adapter.added.get(name) for adapter in self._adapters]
        infos = [
            adapter.replaced.get(name) if one is None else one[0]
            for adapter, one in zip(self._adapters, added, strict=True)
        ]
        scales = tuple(1.0 if one is None else one[1] for one in added)
        held = [info for info in infos if info is not None]
        lacking = [adapter.source.ref for adapter, info in zip(self._adapters, infos, strict=True) if info is None]
        is_added = any(one is not None for one in added)
        if (lacking and not is_added) or len({info.shape for info in held}) > 1:
            raise errors.AdapterError(
                "a tensor that adapters have whole must be in all of them, in one shape", tensor=name,
                got=f"not in {', '.join(lacking)}" if lacking else ", ".join(str(list(info.shape)) for info in held),
                remedy="merge BASE+ADAPTER instead",
            )  # fmt: skip
        self._wholes[name] = _Whole(tuple(infos), scales, group_of(name), is_added)
        self._groups.setdefault(group_of(name), []).append(name)
        kind = "added" if is_added else "whole"
        self._add(held[0].name, held[0].shape, widest([info.output_dtype for info in held]), name, kind)

    def _add(self, name: str, shape: tuple[int, ...], nominal: str, owner: str, role: str) -> None:
        self.tensors[name] = TensorInfo(name, WIDE, shape, 0, 0, nbytes(WIDE, shape), None, nominal)
        self._roles[name] = owner, role

    def mixtures(self) -> dict[str, Mixture]:
        """Coefficients of every group, computed now where they were not needed yet."""
        for group in self._groups:
            self._mixture(group)
        return dict(sorted(self._mixtures.items()))

    def loss(self) -> Loss | None:
        """What smaller ranks took away; None where nothing was."""
        if all(module.rank == _total_rank(module) for module in self._modules.values()):
            return None
        for name, module in self._modules.items():
            if name not in self._norms and module.rank < _total_rank(module):
                self._factors(name)
            elif name not in self._norms:
                steps = self._steps(module.group)
                self._norms[name] = 0.0, float(steps @ self._gram(name) @ steps)
        lost = {name: (math.sqrt(part / whole) if whole > 0 else 0.0) for name, (part, whole) in self._norms.items()}
        worst = max(lost, key=lambda name: lost[name])
        part, whole = (math.fsum(norms[k] for norms in self._norms.values()) for k in (0, 1))
        rank = max(module.rank for module in self._modules.values())
        return Loss(rank, math.sqrt(part / whole) if whole > 0 else 0.0, lost[worst], worst)

    def _mixture(self, group: str) -> Mixture:
        with self._lock:
            if group not in self._mixtures:
                size = len(self._adapters) + 1
                gram = np.zeros((size, size))
                for name in self._groups[group]:
                    gram[1:, 1:] += self._gram(name)
                self._mixtures[group] = self._mixing(gram)
            return self._mixtures[group]

    def _steps(self, group: str) -> Array:
        """The coefficient of each adapter."""
        return self._mixture(group).weights[-len(self._adapters) :]

    def _pairs(self, module: _Module) -> list[tuple[Array, Array] | None]:
        """(s B, A) of each adapter as matrices."""
        found: list[tuple[Array, Array] | None] = []
        for adapter, product in zip(self._adapters, module.products, strict=True):
            if product is None:
                found.append(None)
                continue
            a, b = (matrix_of(adapter.source, info) for info in (product.a, product.b))
            found.append((product.scale * b, a))
        return found

    def _gram(self, name: str) -> Array:
        """Inner products of the adapters' task vectors; einsum sums in one order, whatever the threads."""
        pairs = self._pairs(self._modules[name]) if name in self._modules else self._columns(self._wholes[name])
        found = np.zeros((len(pairs), len(pairs)))
        for i, left in enumerate(pairs):
            for j, right in enumerate(pairs[: i + 1]):
                if left is not None and right is not None:
                    inner = np.einsum("ok,ol->kl", left[0], right[0]) * np.einsum("ki,li->kl", left[1], right[1])
                    found[i, j] = found[j, i] = math.fsum(inner.ravel())
        return found

    def _columns(self, whole: _Whole) -> list[tuple[Array, Array] | None]:
        """What is added to a bias, as products of rank 1; nothing of a tensor that is no difference."""
        return [
            (scale * matrix_of(adapter.source, info), np.ones((1, 1))) if info is not None and whole.is_added else None
            for adapter, info, scale in zip(self._adapters, whole.infos, whole.scales, strict=True)
        ]

    def _factors(self, name: str) -> tuple[Array, Array]:
        """New B and A of a module, as matrices."""
        with self._lock:
            if name in self._made:
                return self._made[name]
            module = self._modules[name]
            steps = self._steps(module.group)
            pairs = [(c * p[0], p[1]) for c, p in zip(steps, self._pairs(module), strict=True) if p is not None]
            b, a = np.hstack([pair[0] for pair in pairs]), np.vstack([pair[1] for pair in pairs])
            if module.rank < b.shape[1]:
                b, a, lost, whole = _of_rank(b, a, module.rank)
                self._norms[name] = lost, whole
            self._made[name] = b, a
            while len(self._made) > KEPT:
                self._made.popitem(last=False)
            return b, a

    def read_into(self, info: TensorInfo, start: int, out: memoryview) -> None:
        """Fill ``out`` with bytes of a tensor, from its byte ``start`` on."""
        owner, role = self._roles[info.name]
        size = itemsize(WIDE)
        first, last = start // size, -(-(start + len(out)) // size)
        if role in ("a", "b"):
            found = np.ascontiguousarray(self._factors(owner)[role == "a"]).reshape(-1)[first:last]
        else:
            found = self._of_wholes(self._wholes[owner], first, last)
        out[:] = found.view(np.uint8).data[start - first * size :][: len(out)]

    def _of_wholes(self, whole: _Whole, first: int, last: int) -> Array:
        """Elements of the combination of tensors that the adapters have whole, or add."""
        found = np.zeros(last - first)
        steps = self._steps(whole.group)
        for adapter, info, scale, step in zip(self._adapters, whole.infos, whole.scales, steps, strict=True):
            if info is not None:
                found += step * scale * values_of(adapter.source, info, first, last)
        return found

    def view(self, info: TensorInfo, start: int, size: int) -> View | None:
        """None: everything is computed."""
        return None

    def drop_views(self, infos: Sequence[TensorInfo]) -> None:
        """Nothing was viewed."""

    def close(self) -> None:
        """Close the adapters."""
        for adapter in self._adapters:
            adapter.source.close()


def _require_alike(adapters: Sequence[Adapter]) -> None:
    """Adapters of one model: what one has whole no other changes by factors, and names have the same prefix."""
    for adapter in adapters:
        for other in adapters:
            for name in adapter.replaced.keys() & other.products.keys():
                if not (name in adapter.products and name in other.replaced):
                    raise errors.AdapterError(
                        "a tensor that one adapter has whole and another changes", tensor=name, file=adapter.source.ref,
                        got=f"factors in {other.source.ref}", remedy="merge BASE+ADAPTER instead",
                    )  # fmt: skip
            own = next(iter(adapter.products), None)
            for name in other.products if own is not None and own not in other.products else ():
                if own is not None and (name.endswith(f".{own}") or own.endswith(f".{name}")):
                    raise errors.AdapterError(
                        "the adapters name one weight with and without a prefix", tensor=own, file=adapter.source.ref,
                        got=f"{name} in {other.source.ref}", remedy="merge BASE+ADAPTER instead",
                    )  # fmt: skip


def _other_bases(adapters: Sequence[Adapter]) -> tuple[str, ...]:
    """Said where the adapters state different bases."""
    stated = {str(adapter.stated.get("base_model_name_or_path") or "") for adapter in adapters} - {""}
    return (f"the adapters were made for different bases: {', '.join(sorted(stated))}",) if len(stated) > 1 else ()


def _outline(product: LowRank) -> tuple[object, ...]:
    return (product.b.shape[0], product.a.shape[1:], product.embedding)


def _total_rank(module: _Module) -> int:
    return sum(product.rank for product in module.products if product is not None)


def _plain(stated: object) -> str:
    """A value of a configuration as text, lists in order."""
    return json.dumps(sorted(stated, key=str) if isinstance(stated, list) else stated)


def _pattern(name: str) -> str:
    """What matches a module's whole name alone."""
    return "^" + name.replace(".", r"\.")


def _of_rank(b: Array, a: Array, rank: int) -> tuple[Array, Array, float, float]:
    """The best product of that rank, its factors of equal size; squares of the norms of what is lost and of all."""
    left, core_left = np.linalg.qr(b)
    right, core_right = np.linalg.qr(a.T)
    u, sizes, v = np.linalg.svd(core_left @ core_right.T)
    root = np.sqrt(sizes[:rank])
    squares = sizes**2
    new_b = (left @ u[:, :rank]) * root
    new_a = root[:, None] * (v[:rank] @ right.T)
    return new_b, new_a, float(squares[rank:].sum()), float(squares.sum())
