"""Inputs with vocabularies of their own, brought to one: whose tokenizer, which rows, which files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from stockpot import errors
from stockpot.checkpoint import EMBEDDINGS, HEADS, Source, TensorInfo
from stockpot.recipe import CHAT_TEMPLATES, Recipe
from stockpot.recipe import Tokenizer as Wanted
from stockpot.vocabulary._chat import chosen_template, missing_marks, with_template
from stockpot.vocabulary._config import Numbering, numbering
from stockpot.vocabulary._files import (
    CHAT_TEMPLATE,
    OLD_CHAT_TEMPLATE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    chat_template_of,
    files_of,
    tokenizer_files,
)
from stockpot.vocabulary._rows import Plan, arrange
from stockpot.vocabulary._source import Rearranged, rearranged
from stockpot.vocabulary._tensors import is_doubtful, is_of_tokens, vocabulary_rows
from stockpot.vocabulary._tokenizer import Tokenizer, read_tokenizer, shared
from stockpot.vocabulary._union import united

SHOWN = 5
PARSED = 15
"""Memory for each byte of the largest ``tokenizer.json``, as measured: its values, and those of another beside it."""
WAYS = {
    "base": "with the base's row where a model lacks them",
    "one": "with the row of the one input that has them",
    "mean": "with the mean of the inputs that have them",
    "stated": "with the row that the recipe states, where a model lacks them",
    "forced": "with the row that the recipe forces",
    "padding": "rows of padding, with the mean of all rows",
}


@dataclass(frozen=True)
class Vocabulary:
    """The output's vocabulary and chat template.

    ``files``: the tokenizer's files by name, as bytes or where they are copied from; None where the template's stay.
    ``numberings``: for each input, how its configuration changes. ``changed``: what became of tensors. ``digest``: of
    all that it was made of, so that another tokenizer is another job.
    """

    files: Mapping[str, bytes | Path] | None
    chat_template: str | None
    numberings: tuple[Numbering, ...]
    changed: Mapping[str, str]
    notes: tuple[str, ...]
    digest: str
    record: Mapping[str, Any]
    reading_bytes: int = 0
    """Memory that was taken while the tokenizers were read."""

    def is_replaced(self, name: str) -> bool:
        """Whether a side file of the template is not copied, since the tokenizer's files say it otherwise."""
        if self.files is not None and name in TOKENIZER_FILES:
            return True
        return self.chat_template is not None and name in (CHAT_TEMPLATE, OLD_CHAT_TEMPLATE, TOKENIZER_CONFIG)

    def copied(self) -> dict[str, Path]:
        """Files that are copied as they are, from the input whose tokenizer is the output's."""
        left = set(self.made({})) | ({OLD_CHAT_TEMPLATE} if self.chat_template is not None else set())
        return {name: one for name, one in (self.files or {}).items() if isinstance(one, Path) and name not in left}

    def made(self, beside: Mapping[str, Path]) -> dict[str, bytes]:
        """Files that are written; ``beside``: the template's side files, whose tokenizer stays if none is asked for."""
        found = {name: one for name, one in (self.files or {}).items() if isinstance(one, bytes)}
        if self.chat_template is not None:
            place = (beside if self.files is None else self.files).get(TOKENIZER_CONFIG)
            config = place.read_bytes() if isinstance(place, Path) else place
            found[TOKENIZER_CONFIG] = with_template(config, self.chat_template)
            found[CHAT_TEMPLATE] = self.chat_template.encode("utf-8", "backslashreplace")
            found.pop(OLD_CHAT_TEMPLATE, None)
        return found

    def lost(self, template: int, config: Mapping[str, Any]) -> list[str]:
        """What is said of special tokens of a configuration that the output lacks."""
        lost = list(dict.fromkeys(self.numberings[template].lost(config))) if self.numberings else []
        return [
            f"the configuration's tokens are not in the output's vocabulary, and become null: {_listed(lost)}"
        ] * bool(lost)

    def config(self, template: int, content: bytes) -> bytes:
        """A configuration of the template, an input's number, in the output's vocabulary."""
        return self.numberings[template].changed(content) if self.numberings else content


def unify(
    recipe: Recipe, sources: Sequence[Source], views: Sequence[Mapping[str, TensorInfo]], *, has_base: bool
) -> tuple[tuple[Source, ...], Vocabulary]:
    """Bring inputs to one vocabulary, as a recipe says; returns them, in order, and what the output gets.

    ``sources``: the inputs, the base first where there is one; ``views``: their tensors by the names of the output.
    Raises TokenizerError, before any weight is read. Cost: reading the tokenizers; memory for one number for each token
    and input.
    """
    files = [tokenizer_files(source) for source in sources]
    template, said = None, ""
    if recipe.chat_template is not None:
        template, said = chosen_template(recipe.chat_template, [chat_template_of(one) for one in files])
    wanted = recipe.output_tokenizer
    notes = [said] if said else []
    if wanted is None:
        record: dict[str, Any] = {"chat_template": recipe.chat_template}
        digest = _digest(json.dumps(record), template or "")
        return tuple(sources), Vocabulary(None, template, (), {}, tuple(notes), digest, record)
    tokenizers: list[Tokenizer] = []
    for source, one in zip(sources, files, strict=True):
        tokenizers.append(shared(read_tokenizer(source.ref, one), tokenizers))
    own_rows = [vocabulary_rows(source) for source in sources]
    first, ids, made = _output(wanted, tokenizers, has_base, notes)
    plan = arrange(
        ids, tokenizers, own_rows, has_base=has_base, tokens=wanted.tokens,
        refs=[source.ref for source in sources], multiple=wanted.pad_to_multiple_of,
    )  # fmt: skip
    shown, changed = _rearranged(sources, views, plan, notes)
    notes += _told(recipe, ids, tokenizers, own_rows, template)
    kept: dict[str, bytes | Path] = dict(made) if made else dict(first.files)
    numberings = tuple(
        numbering(own.ids, ids, (own.roles, first.roles), (rows, plan.size))
        for own, rows in zip(tokenizers, own_rows, strict=True)
    )
    record = {
        "tokenizer": f"union after {first.ref}" if made else first.ref,
        "tokens": len(ids),
        "rows": plan.size,
        "ways": dict(plan.counts),
        "chat_template": recipe.chat_template,
        "inputs": [{"tokens": len(one.ids), "xxh3": one.digest} for one in tokenizers],
    }
    digest = _digest(json.dumps(record), template or "", first.digest)
    return shown, Vocabulary(
        kept, template, numberings, changed, tuple(notes), digest, record, PARSED * max(map(_size, files))
    )


def _size(files: Mapping[str, Path]) -> int:
    return files[TOKENIZER].stat().st_size


def _digest(*texts: str) -> str:
    return str(xxhash.xxh3_128_hexdigest("\0".join(texts).encode("utf-8", "backslashreplace")))


def _output(
    wanted: Wanted, tokenizers: Sequence[Tokenizer], has_base: bool, notes: list[str]
) -> tuple[Tokenizer, dict[str, int], dict[str, bytes]]:
    """The tokenizer that the output's begins with, its tokens by number, and its files where they are new ones."""
    refs = [one.ref for one in tokenizers]
    if wanted.source in refs:
        chosen = [tokenizers[refs.index(wanted.source)]]
    elif wanted.source in ("union", "base"):
        chosen = list(tokenizers) if wanted.source == "union" else [tokenizers[0]]
        if not has_base:
            notes.append(f"tokenizer {wanted.source}: there is no base_model, and {refs[0]} is taken for it")
    else:
        chosen = [_further(wanted.source, refs)]
    known = {text for one in chosen for text in one.ids}
    further = [text for text in wanted.tokens if text not in known]
    if further:
        notes.append(f"tokens that the tokenizer chosen lacks, and that are added: {_listed(further)}")
    if any(dict(one.content) != dict(chosen[0].content) for one in chosen[1:]):
        odd = [one.ref for one in chosen[1:] if _way_of_writing(one) != _way_of_writing(chosen[0])]
        if odd:
            notes.append(f"{_listed(odd)}: cuts text otherwise than {chosen[0].ref}, as which the union writes it")
    ids, made = united(chosen, further, tokenizers)
    return chosen[0], ids, made


def _further(ref: str, refs: Sequence[str]) -> Tokenizer:
    """A tokenizer of none of the inputs."""
    try:
        return read_tokenizer(ref, files_of(ref))
    except errors.NotFoundError as error:
        close = errors.nearest(ref, [*refs, "union", "base"])
        raise errors.NotFoundError(
            "the tokenizer's source is none of the inputs, and is not there", file=ref,
            expected="union, base, an input as it is written there, or a folder with a tokenizer",
            remedy=f"did you mean {close}?" if close else error.remedy,
        ) from None  # fmt: skip


def _way_of_writing(tokenizer: Tokenizer) -> tuple[object, ...]:
    """What becomes of text before and after the vocabulary."""
    return tuple(json.dumps(tokenizer.content.get(key)) for key in ("normalizer", "pre_tokenizer", "decoder"))


def _rearranged(
    sources: Sequence[Source], views: Sequence[Mapping[str, TensorInfo]], plan: Plan, notes: list[str]
) -> tuple[tuple[Source, ...], dict[str, str]]:
    """The inputs with the output's rows, and what is said of each tensor that has other rows than before."""
    names = list(
        dict.fromkeys(
            name
            for view, rows in zip(views, plan.rows, strict=True)
            for name, info in view.items()
            if is_of_tokens(info.name, info, rows.own_rows)
        )
    )
    ways = "; ".join(f"{count} {WAYS[way]}" for way, count in plan.counts.items())
    shown: list[Source] = []
    changed: dict[str, str] = {}
    for number, (source, view, rows) in enumerate(zip(sources, views, plan.rows, strict=True)):
        if rows.is_unchanged:
            shown.append(source)
            continue
        tensors = {
            view[name].name: {n: found for n in range(len(sources)) if (found := _same(views[n], name)) is not None}
            for name in names
            if name in view and view[name].name in source.tensors
        }
        one = rearranged(sources, number, rows, tensors)
        shown.append(one)
        changed.update({name: f"{plan.size} rows{': ' + ways if ways else ''}" for name in names if name in view})
        notes += _doubtful(one)
    return tuple(shown), changed


def _same(view: Mapping[str, TensorInfo], name: str) -> TensorInfo | None:
    """An input's tensor of that name; of a head that it ties, its embedding."""
    if name in view:
        return view[name]
    tied = [info for other, info in view.items() if other.endswith(EMBEDDINGS)]
    return tied[0] if name.endswith(HEADS) and len(tied) == 1 else None


def _doubtful(source: Rearranged) -> list[str]:
    """Said of tensors that have as many rows as the vocabulary, and keep them."""
    rows = source.rows.own_rows
    found = [name for name, info in source.inner.tensors.items() if is_doubtful(name, info, rows)]
    if not found:
        return []
    return [f"{source.ref}: as many rows as tokens, but no name that says so; left as they are: {_listed(found)}"]


def _told(
    recipe: Recipe,
    ids: Mapping[str, int],
    tokenizers: Sequence[Tokenizer],
    own_rows: Sequence[int],
    template: str | None,
) -> list[str]:
    """What a user would want to know: tokens without rows, rows without tokens, marks that are no tokens."""
    notes = []
    for one, rows in zip(tokenizers, own_rows, strict=True):
        beyond = [text for text, number in one.ids.items() if number >= rows]
        if beyond:
            notes.append(f"{one.ref}: has {rows} rows, and none for {_listed(beyond)}: as if it lacked them")
        if rows > one.size:
            notes.append(f"{one.ref}: {rows - one.size} rows of padding are left out, which no token has")
    if template is not None and recipe.chat_template in CHAT_TEMPLATES:
        lacking = missing_marks(str(recipe.chat_template), ids)
        if lacking:
            notes.append(f"chat_template {recipe.chat_template}: no tokens of the output: {_listed(lacking)}")
    return notes


def _listed(names: Sequence[str]) -> str:
    """A few names, and how many more.

    >>> _listed(["a", "b"]), _listed(list("abcdefg"))
    ('a, b', 'a, b, c, d, e and 2 more')
    """
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
