"""The files of a tokenizer: which they are, and where those of an input lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stockpot import errors
from stockpot.adapters import AdaptedCheckpoint, open_source
from stockpot.checkpoint import Checkpoint, Source, is_local, local_path, require_readable

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
CHAT_TEMPLATE = "chat_template.jinja"
OLD_CHAT_TEMPLATE = "chat_template.json"
KEPT = (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, CHAT_TEMPLATE, OLD_CHAT_TEMPLATE)
"""What tells all of a tokenizer."""
VOCABULARY_FILES = (
    *("added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "vocab.bpe", "spm.model", "sentencepiece.model", "tokenizer.tiktoken"),
)
"""Older forms of the vocabulary, which say the same as ``tokenizer.json`` where that is there."""
TOKENIZER_FILES = (*KEPT, *VOCABULARY_FILES)
SIZE_CAP = 256 << 20
"""Of a tokenizer's file, in bytes: the largest known have 35 MB."""


def tokenizer_files(source: Source) -> dict[str, Path]:
    """The files of an input's tokenizer on this machine, by name. Cost: on a hub, their download."""
    if isinstance(source, AdaptedCheckpoint):
        return tokenizer_files(source.base)
    if isinstance(source, Checkpoint) and source.hub is not None:
        there = [name for name in source.hub.names("") if name in TOKENIZER_FILES]
        source.hub.download([name for name in there if source.hub.cached(name) is None])
        found = {name: source.hub.cached(name) for name in there}
        return {name: path for name, path in found.items() if path is not None}
    return in_folder(source.folder) if source.folder is not None else {}


def in_folder(folder: Path) -> dict[str, Path]:
    """The files of a tokenizer in a folder, by name."""
    return {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}


def files_of(ref: str) -> dict[str, Path]:
    """The files of a tokenizer that none of the inputs has: of a folder, with or without weights, or of a Hub id."""
    if is_local(ref) and local_path(ref).is_dir():
        return in_folder(local_path(ref))
    return tokenizer_files(open_source(ref))


def read_json(path: Path) -> dict[str, Any]:
    """The map in a JSON file; raises TokenizerError where there is none."""
    require_readable(path)
    if path.stat().st_size > SIZE_CAP:
        raise errors.TokenizerError("the file is absurdly long", file=str(path), expected=f"{SIZE_CAP} bytes")
    try:
        found = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError):
        raise errors.TokenizerError("the file is no JSON that can be read", file=str(path)) from None
    except OSError as error:
        raise errors.UnreadableError(f"the file cannot be read ({error.strerror})", file=str(path)) from None
    if not isinstance(found, dict):
        raise errors.TokenizerError("the file holds no JSON object", file=str(path), got=type(found).__name__)
    return found


def chat_template_of(files: Mapping[str, Path]) -> str | None:
    """The chat template of a tokenizer: its own file, else the one in its configuration (there, the default one)."""
    if CHAT_TEMPLATE in files:
        require_readable(files[CHAT_TEMPLATE])
        return files[CHAT_TEMPLATE].read_text("utf-8", errors="replace")
    stated = read_json(files[TOKENIZER_CONFIG]).get("chat_template") if TOKENIZER_CONFIG in files else None
    if isinstance(stated, list):
        named = {one.get("name"): one.get("template") for one in stated if isinstance(one, dict)}
        stated = named.get("default")
    return stated if isinstance(stated, str) else None
