"""A tokenizer as data: its tokens by number, read from ``tokenizer.json`` alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from stockpot import errors
from stockpot.checkpoint import require_readable
from stockpot.vocabulary._files import SPECIAL_TOKENS, TOKENIZER, TOKENIZER_CONFIG, VOCABULARY_FILES, read_json

ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
"""What a special token can be, as configurations call it."""
NUMBER_CAP = 1 << 24
"""Largest number of a token: the largest vocabularies have a million."""
KINDS = ("BPE", "WordPiece", "WordLevel", "Unigram")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of an input.

    ``core``: the tokens of its model by number; ``added``: entries of the tokens added to it, as its file has them;
    ``ids``: the numbers of all; ``roles``: which token begins a text, ends it, and so on; ``content``: its
    ``tokenizer.json``; ``files``: all its files; ``digest`` of them.
    """

    ref: str
    core: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    ids: Mapping[str, int]
    roles: Mapping[str, str]
    content: Mapping[str, Any]
    files: Mapping[str, Path]
    digest: str

    @property
    def kind(self) -> str:
        """What kind of model it is."""
        return str(self.content["model"].get("type"))

    @property
    def size(self) -> int:
        """Numbers that it uses, gaps among them too."""
        return max(self.ids.values(), default=-1) + 1


def read_tokenizer(ref: str, files: Mapping[str, Path]) -> Tokenizer:
    """The tokenizer in these files; raises TokenizerError where it cannot be understood. Cost: reading them."""
    if TOKENIZER not in files:
        old = [name for name in VOCABULARY_FILES if name in files]
        raise errors.TokenizerError(
            "only an older form of its tokenizer is there" if old else "the input has no tokenizer",
            file=ref, expected=TOKENIZER, got=", ".join(old) or None,
            remedy="save it anew: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)" if old
            else f"put {TOKENIZER} and {TOKENIZER_CONFIG} into its folder, or leave tokenizer and tokenizer_source out",
        )  # fmt: skip
    path = files[TOKENIZER]
    content = read_json(path)
    core = _core(content, path)
    added: dict[str, Mapping[str, Any]] = {}
    stated = content.get("added_tokens") or []
    if not isinstance(stated, list):
        raise _unfit(path, "added_tokens is no list", stated)
    for entry in stated:
        text = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not text or not _is_number(entry.get("id")):
            raise _unfit(path, "an added token has no content and id", entry)
        added[text] = entry
    ids = {**core, **loaded_numbers(core, added)}
    for text, entry in added.items():
        if ids[text] != entry["id"]:
            raise errors.TokenizerError(
                f"the added token {text!r} gets another number where it is loaded", file=str(path),
                expected=entry["id"], got=ids[text],
                remedy="save it anew: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
            )  # fmt: skip
    if len(set(ids.values())) != len(ids):
        first, second = _doubles(ids)
        raise errors.TokenizerError(
            "two tokens have one number", file=str(path), got=f"{first!r} and {second!r}: {ids[first]}"
        )
    return Tokenizer(ref, core, added, ids, _roles(files), content, files, _digest(files))


def shared(tokenizer: Tokenizer, known: Iterable[Tokenizer]) -> Tokenizer:
    """The tokenizer with the memory of an equal one: fine-tunes mostly have their base's, with 300,000 merges."""
    for other in known:
        if other.content["model"] == tokenizer.content["model"]:
            content = {**tokenizer.content, "model": other.content["model"]}
            return replace(tokenizer, content=content, core=other.core)
    return tokenizer


def loaded_numbers(core: Mapping[str, int], added: Mapping[str, object] | Sequence[str]) -> dict[str, int]:
    """The numbers of added tokens once loaded: the model's own, or the next after what is there.

    >>> loaded_numbers({"a": 0, "b": 1}, ["b", "<x>", "<y>"])
    {'b': 1, '<x>': 2, '<y>': 3}
    """
    found: dict[str, int] = {}
    highest = -1
    for text in added:
        if text in found:
            continue
        found[text] = core[text] if text in core else max(highest + 1, len(core))
        highest = max(highest, found[text])
    return found


def special_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(role, token) for each that a tokenizer's configuration states."""
    for role in ROLES:
        value = config.get(f"{role}_token")
        token = value.get("content") if isinstance(value, dict) else value
        if isinstance(token, str):
            yield role, token


def _roles(files: Mapping[str, Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in (SPECIAL_TOKENS, TOKENIZER_CONFIG):  # the later wins, as where they are loaded
        if name in files:
            found.update(special_tokens(read_json(files[name])))
    return found


def _core(content: Mapping[str, Any], path: Path) -> dict[str, int]:
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") not in KINDS:
        kind = model.get("type") if isinstance(model, dict) else model
        raise errors.TokenizerError(
            "a tokenizer of an unknown kind", file=str(path), expected=", ".join(KINDS), got=repr(kind)[:80]
        )
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        if not all(isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) for one in vocabulary):
            raise _unfit(path, "vocab is no list of pieces and scores", None)
        return {one[0]: number for number, one in enumerate(vocabulary)}
    if not isinstance(vocabulary, dict) or not all(map(_is_number, vocabulary.values())):
        raise _unfit(path, "vocab is no map of tokens to numbers", None)
    return vocabulary


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value <= NUMBER_CAP


def _unfit(path: Path, what: str, got: object) -> errors.TokenizerError:
    return errors.TokenizerError(
        f"the tokenizer cannot be understood: {what}", file=str(path), got=None if got is None else repr(got)[:80]
    )


def _doubles(ids: Mapping[str, int]) -> tuple[str, str]:
    seen: dict[int, str] = {}
    for text, number in ids.items():
        if number in seen:
            return seen[number], text
        seen[number] = text
    raise AssertionError


def _digest(files: Mapping[str, Path]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(files):
        require_readable(files[name])
        data = files[name].read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return str(digest.hexdigest())
