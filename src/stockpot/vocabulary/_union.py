"""One tokenizer with the tokens of several: the first one's, as it is, then what the others add.

Numbers of the first tokenizer stay as they are; further tokens follow it model by model, in the order of their numbers.
A token of a model's own vocabulary becomes one of the union's, with the merges (BPE) or the score (Unigram) that make
it; an added token stays an added one. So what the first tokenizer writes is written as before, but for text that the
further merges go on joining, and a vocabulary that extends the first one's is had again whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stockpot import errors
from stockpot.vocabulary._files import KEPT, TOKENIZER, TOKENIZER_CONFIG, read_json
from stockpot.vocabulary._tokenizer import Tokenizer, loaded_numbers

_NEW_TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
_DECODER = "added_tokens_decoder"


def new_tokens(tokenizers: Sequence[Tokenizer], further: Sequence[str] = ()) -> tuple[dict[str, int], set[str]]:
    """Tokens that the first tokenizer lacks, with their numbers; and which of them are added ones.

    >>> new_tokens([])
    ({}, set())
    """
    if not tokenizers:
        return {}, set()
    first, *others = tokenizers
    next_number = first.size
    found: dict[str, int] = {}
    added = {text for other in others for text in other.added if text not in first.ids}
    ordered = [text for other in others for text in sorted(other.ids, key=other.ids.__getitem__)]
    for text in (*ordered, *further):
        if text not in first.ids and text not in found:
            found[text] = next_number
            next_number += 1
    return found, added | {text for text in further if text in found and not _is_core(text, others)}


def _is_core(text: str, others: Sequence[Tokenizer]) -> bool:
    return any(text in other.core for other in others)


def united(
    tokenizers: Sequence[Tokenizer], further: Sequence[str] = (), others: Sequence[Tokenizer] = ()
) -> tuple[dict[str, int], dict[str, bytes]]:
    """The tokens of a union by number, and its files; no files where the first tokenizer has all tokens already.

    ``further``: tokens that none of these has, and that are added, as ``others`` have them where they do. Raises
    TokenizerError where the tokenizers are of kinds that have no union.
    """
    first, *rest = tokenizers
    found, added = new_tokens(tokenizers, further)
    ids = {**first.ids, **found}
    if not found:
        return ids, {}
    content = {**first.content, "model": dict(first.content["model"])}
    core = [text for text in found if text not in added]
    for other in rest:
        own = [text for text in core if text in other.core]
        if own and other.kind != first.kind:
            raise errors.TokenizerError(
                "tokenizers of different kinds have no union", file=other.ref, expected=f"{first.kind}, as {first.ref}",
                got=f"{other.kind}, with {len(own)} tokens of its own, such as {own[0]!r}",
                remedy="take the tokenizer of one: source: base, or a model",
            )  # fmt: skip
    entries = {
        text: _entry(text, ids[text], (*tokenizers, *others)) for text in ids if text in first.added or text in added
    }
    content["added_tokens"] = sorted(entries.values(), key=lambda entry: int(entry["id"]))
    _extend(content["model"], ids, core, tokenizers, content["added_tokens"])
    # Compact: the readable form of a large vocabulary takes seconds, and ten lines for a merge.
    files = {TOKENIZER: json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace")}
    if TOKENIZER_CONFIG in first.files:
        config = read_json(first.files[TOKENIZER_CONFIG])
        if isinstance(config.get(_DECODER), dict):
            for text in (text for text in found if text in added):
                entry = {key: value for key, value in entries[text].items() if key != "id"}
                config[_DECODER][str(ids[text])] = entry
        files[TOKENIZER_CONFIG] = as_json(config)
    files.update({name: path.read_bytes() for name, path in first.files.items() if name in KEPT and name not in files})
    return ids, files


def as_json(data: Mapping[str, Any]) -> bytes:
    """JSON as tokenizers have it: readable, Unicode as it is."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _entry(text: str, number: int, tokenizers: Sequence[Tokenizer]) -> dict[str, Any]:
    """The entry of an added token: of the first tokenizer that has one."""
    known = next((one.added[text] for one in tokenizers if text in one.added), _NEW_TOKEN)
    return {"id": number, "content": text, **{key: known[key] for key in _NEW_TOKEN if key in known}}


def _extend(
    model: dict[str, Any],
    ids: Mapping[str, int],
    core: Sequence[str],
    tokenizers: Sequence[Tokenizer],
    added: Sequence[Mapping[str, Any]],
) -> None:
    """Put further tokens into a model; added ones too where they would not keep their numbers otherwise."""
    first, *others = tokenizers
    held = {**first.core, **{text: ids[text] for text in core}}
    texts = [str(entry["content"]) for entry in added]
    if any(number != ids[text] for text, number in loaded_numbers(held, texts).items()):
        held.update({text: ids[text] for text in texts})
    if len(held) == len(first.core):
        return
    if isinstance(model["vocab"], list):
        model["vocab"] = _pieces(model["vocab"], held, tokenizers)
        return
    model["vocab"] = dict(sorted(held.items(), key=lambda item: item[1]))
    if first.kind == "BPE":
        new = set(core)
        merges = [_pair(merge) for merge in model.get("merges", [])]
        known = set(merges)
        for other in others:
            joint = str(other.content["model"].get("continuing_subword_prefix") or "")
            for left, right in _merges(other):
                whole = left + right[len(joint) :]
                if whole in new and left in held and right in held and (left, right) not in known:
                    known.add((left, right))
                    merges.append((left, right))
        model["merges"] = [list(pair) for pair in merges]


def _pieces(vocabulary: Sequence[Any], held: Mapping[str, int], tokenizers: Sequence[Tokenizer]) -> list[list[Any]]:
    """The list of a Unigram model, in which a piece's place is its number."""
    scores = {one[0]: one[1] for one in vocabulary}
    for other in tokenizers[1:]:
        if isinstance(other.content["model"]["vocab"], list):
            for piece, score in other.content["model"]["vocab"]:
                scores.setdefault(piece, score)
    ordered = sorted(held, key=held.__getitem__)
    if [held[text] for text in ordered] != list(range(len(ordered))):
        raise errors.TokenizerError(
            "the tokenizer leaves numbers out, and a Unigram union has none to leave", file=tokenizers[0].ref,
            remedy="take the tokenizer of one: source: base, or a model",
        )  # fmt: skip
    return [[text, scores.get(text, 0.0)] for text in ordered]


def _merges(tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    for merge in tokenizer.content["model"].get("merges", []):
        yield _pair(merge)


def _pair(merge: object) -> tuple[str, str]:
    """A merge, written as one text or as two.

    >>> _pair("a b"), _pair(["a", "b"])
    (('a', 'b'), ('a', 'b'))
    """
    parts = merge.split(" ", 1) if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise errors.TokenizerError("a merge of a tokenizer is no pair", got=repr(merge)[:80])
    return parts[0], parts[1]
