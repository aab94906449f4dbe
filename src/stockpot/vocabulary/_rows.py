"""For each number of the output's vocabulary, the row that an input has for it, or what takes its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stockpot import errors
from stockpot.recipe import ModelToken, TokenSource, ZeroToken
from stockpot.vocabulary._tokenizer import Tokenizer

ZERO, MEAN = -1, -2
"""Rows that no input has: zeros; the mean of all rows that tokens have."""
_FIRST = -3
Place = tuple[int, int]
"""(number of an input, row in it)."""


@dataclass(frozen=True)
class Rows:
    """The rows of one input in the output's vocabulary.

    ``index``: for each output row the input's own, or ``ZERO``, ``MEAN``, or minus 3 minus a position in ``borrowed``:
    the mean of rows of other inputs. ``own_rows``: how many it has.
    """

    index: NDArray[np.int64]
    borrowed: tuple[tuple[Place, ...], ...]
    own_rows: int

    @property
    def is_unchanged(self) -> bool:
        """Whether these are the input's own rows, all of them, in order."""
        return len(self.index) == self.own_rows and bool((self.index == np.arange(self.own_rows)).all())

    def places(self, row: int) -> tuple[Place, ...]:
        """Where a row that is not the input's own comes from."""
        return self.borrowed[_FIRST - int(self.index[row])]


@dataclass(frozen=True)
class Plan:
    """The rows of every input, and how many tokens came by which way."""

    rows: tuple[Rows, ...]
    size: int
    counts: Mapping[str, int] = field(default_factory=dict)


def arrange(
    ids: Mapping[str, int],
    tokenizers: Sequence[Tokenizer],
    own_rows: Sequence[int],
    *,
    has_base: bool,
    tokens: Mapping[str, TokenSource],
    refs: Sequence[str],
    multiple: int | None,
) -> Plan:
    """Decide every row.

    A model that has a token keeps its row for it. Where it lacks it, the row is the one stated in ``tokens``, else the
    base's, else the mean over the inputs that have the token (the one's, where there is only one). A stated row that is
    forced is taken for all. ``multiple`` pads the vocabulary; padding, and numbers that no token has, get the mean of
    the rows. Raises TokenizerError, listing every problem at once.
    """
    used = max(ids.values(), default=-1) + 1
    size = used if multiple is None else -(-used // multiple) * multiple
    problems: list[str] = []
    stated = {text: _stated(text, one, tokenizers, own_rows, refs, problems) for text, one in tokens.items()}
    borrowed: dict[tuple[Place, ...], int] = {}
    indexes = np.full((len(tokenizers), size), MEAN, np.int64)
    having, numbers = _having(ids, tokenizers, own_rows), np.fromiter(ids.values(), np.int64, len(ids))
    indexes[:, numbers] = having
    counts = {"base": 0, "one": 0, "mean": 0, "stated": 0, "forced": 0}
    odd = set(np.flatnonzero((having < 0).any(axis=0)).tolist())
    for column, (text, number) in enumerate(ids.items()):
        if column not in odd and text not in tokens:
            continue
        own = {place: int(row) for place, row in enumerate(having[:, column]) if row >= 0}
        is_forced = text in tokens and tokens[text].force
        if len(own) == len(tokenizers) and not is_forced:
            continue
        default = stated[text] if text in stated else _default(own, has_base)
        if default is None:
            problems.append(f"no input has a row for {text!r}: state its source under tokens, such as {{kind: zero}}")
            continue
        way = "forced" if is_forced else "stated" if text in stated else "base" if has_base and 0 in own else ""
        counts[way or ("one" if len(own) == 1 else "mean")] += 1
        code = ZERO if not default else _FIRST - borrowed.setdefault(default, len(borrowed))
        lacking = [place for place in range(len(tokenizers)) if is_forced or place not in own]
        indexes[lacking, number] = code
    if problems:
        raise errors.TokenizerError(
            "rows of tokens cannot be found" if len(problems) > 1 else problems[0],
            problems=problems if len(problems) > 1 else (),
        )
    counts = {"padding": size - len(ids), **counts}
    found = tuple(borrowed)
    rows = (
        _settled(Rows(index, found, own), place)
        for place, (index, own) in enumerate(zip(indexes, own_rows, strict=True))
    )
    return Plan(tuple(rows), size, {way: count for way, count in counts.items() if count})


def _settled(rows: Rows, place: int) -> Rows:
    """A row that would be borrowed from the input itself is its own."""
    for number, places in enumerate(rows.borrowed):
        if len(places) == 1 and places[0][0] == place:
            rows.index[rows.index == _FIRST - number] = places[0][1]
    return rows


def _having(ids: Mapping[str, int], tokenizers: Sequence[Tokenizer], own_rows: Sequence[int]) -> NDArray[np.int64]:
    """For each input and token the row that it has, or -1."""
    found = np.array([[one.ids.get(text, -1) for text in ids] for one in tokenizers], np.int64)
    return np.where(found < np.array(own_rows)[:, None], found, -1)


def _default(own: Mapping[int, int], has_base: bool) -> tuple[Place, ...] | None:
    if has_base and 0 in own:
        return ((0, own[0]),)
    return tuple(own.items()) or None


def _stated(
    text: str,
    one: TokenSource,
    tokenizers: Sequence[Tokenizer],
    own_rows: Sequence[int],
    refs: Sequence[str],
    problems: list[str],
) -> tuple[Place, ...]:
    """Where a recipe wants a token's row from; nothing for zeros."""
    source = one.source
    if isinstance(source, ZeroToken):
        return ()
    model = source.model if isinstance(source, ModelToken) else source
    if model not in refs:
        close = errors.nearest(model, refs)
        problems.append(
            f"tokens {text!r}: {model} is none of the inputs" + (f"; did you mean {close}?" if close else "")
        )
        return ()
    place = list(refs).index(model)
    wanted = (source.token if isinstance(source, ModelToken) else text) or ""
    row = source.token_id if isinstance(source, ModelToken) and source.token_id is not None else None
    if row is None and wanted not in tokenizers[place].ids:
        close = errors.nearest(wanted, tokenizers[place].added)
        hint = f"; did you mean {close}?" if close else ""
        problems.append(f"tokens {text!r}: {model} has no token {wanted!r}{hint}")
        return ()
    row = tokenizers[place].ids[wanted] if row is None else row
    if row >= own_rows[place]:
        problems.append(f"tokens {text!r}: {model} has {own_rows[place]} rows, and none of number {row}")
        return ()
    return ((place, row),)
