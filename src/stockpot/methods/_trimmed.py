"""The rule of the methods that keep a part of each task vector, and add: TIES, DARE, breadcrumbs, DELLA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from stockpot.kernels import (
    BLOCK,
    Elements,
    Part,
    Row,
    Sum,
    Wanted,
    kept_count,
    largest,
    magnitudes,
    middle,
    random_key,
    rank_shares,
    trim,
)
from stockpot.methods._base import normalized
from stockpot.methods._rule import Form, Unit

Keep = Literal["largest", "middle", "random", "ranked"]


@dataclass(frozen=True)
class Trimmed:
    """w0 + lambda sum_i weight_i scale_i keep_i(w_i - w0), by sign consensus or without.

    ``keep``: the ``largest`` share ``density`` of magnitudes; the ``middle``, which leaves the largest share ``reach``
    out; at ``random`` with probability ``density``; or ``ranked``, at random with a probability that goes with the rank
    of the magnitude in its row from density - reach to density + reach. ``rescale``: what is kept at random is divided
    by its probability; what is kept by magnitude gets the whole's sum of magnitudes.
    """

    method: str
    form: Form
    keep: Keep
    weight: tuple[float, ...]
    density: tuple[float, ...]
    sum: Sum
    reach: tuple[float, ...] = ()
    rescale: bool = False

    def __post_init__(self) -> None:
        """ParameterError where weights are to divide and cancel."""
        if self.sum.normalize and not self.sum.consensus:
            normalized(self.method, np.array(self.weight))

    @property
    def unit(self) -> Unit:
        """Ranks need whole rows."""
        return "row" if self.keep == "ranked" else "block"

    def measure(self, tensor: Elements, *, pass_nonfinite: bool) -> list[Part]:
        """What is kept of each task vector."""
        if self.keep in ("random", "ranked"):
            return [self._at_random(number) for number in range(self.form.models)]
        if self.keep == "largest":
            wanted = [(Wanted(kept_count(share, tensor.count)),) for share in self.density]
            cuts = largest(tensor, wanted)
            parts = [Part(weight, low=own[0]) for weight, own in zip(self.weight, cuts, strict=True)]
        else:
            counts = [self._counts(number, tensor.count) for number in range(self.form.models)]
            pairs = middle(tensor, counts)
            parts = [Part(weight, low=low, high=high) for weight, (low, high) in zip(self.weight, pairs, strict=True)]
        return self._rescaled(tensor, parts) if self.rescale else parts

    def make(self, measured: list[Part], place: int, rows: Sequence[Row], out: Row, *, pass_nonfinite: bool) -> None:
        """A piece."""
        parts = measured
        if self.keep == "ranked":
            parts = [self._ranked(part, rows, number) for number, part in enumerate(measured)]
        trim(rows, place, parts, self.sum, out, pass_nonfinite=pass_nonfinite)

    def facts(self) -> Mapping[str, object]:
        """Elements kept of each task vector, where they are counted."""
        count = int(np.prod(self.form.shape, dtype=np.int64))
        if self.keep == "largest":
            return {"kept": [kept_count(share, count) for share in self.density]}
        if self.keep == "middle":
            return {"kept": [self._counts(number, count)[0] for number in range(self.form.models)]}
        return {}

    def _counts(self, number: int, count: int) -> tuple[int, int]:
        """How many are kept, and how many larger ones are not."""
        keep = kept_count(self.density[number], count)
        return keep, min(kept_count(self.reach[number], count), count - keep)

    def _at_random(self, number: int) -> Part:
        density = self.density[number]
        return Part(
            self.weight[number],
            scale=1.0 / density if self.keep == "random" and self.rescale and density else 1.0,
            chance=density,
            key=random_key(self.form.seed, self.form.name, number),
        )

    def _ranked(self, part: Part, rows: Sequence[Row], number: int) -> Part:
        if self.density[number] in (0.0, 1.0):
            return part
        low = self.density[number] - self.reach[number]
        columns = int(np.prod(self.form.shape[1:] if len(self.form.shape) > 1 else self.form.shape, dtype=np.int64))
        chances = low + 2.0 * self.reach[number] * rank_shares(rows, number + 1, columns)
        return replace(part, chance=0.0, chances=chances, inverse=self.rescale)

    def _rescaled(self, tensor: Elements, parts: Sequence[Part]) -> list[Part]:
        """With the sums of magnitudes of the whole task vectors."""
        sums = np.zeros((len(parts), 2))
        for place, rows in tensor.pieces():
            for start in range(0, len(rows[0]), BLOCK):
                block = [row.cut(start, min(start + BLOCK, len(row))) for row in rows]
                sums += [magnitudes(block, number, place + start, part) for number, part in enumerate(parts, 1)]
        return [
            replace(part, scale=float(whole / kept)) if kept > 0.0 else part
            for part, (whole, kept) in zip(parts, sums, strict=True)
        ]
