"""What is copied beside the weights, from the template's folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stockpot import errors
from stockpot.checkpoint import CONFIG_DEPTH, TIE, TORCH_NAMES, Source, is_side_file, is_side_folder

_DTYPE_KEYS = ("torch_dtype", "dtype")


def side_files(template: Source) -> dict[str, Path]:
    """Files of the template's folder that are copied, by relative name, subfolders too: regular, not weights, not
    training state, not hidden. Raises CheckpointError for a symlinked folder, which may lead anywhere."""
    return {} if template.folder is None else dict(_inside(template.folder, ""))


def _inside(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for entry in sorted(folder.iterdir()):
        name = entry.name
        if entry.is_dir():
            if not is_side_folder(name):
                continue
            if entry.is_symlink():
                raise errors.CheckpointError(
                    "a symlinked folder inside a checkpoint", file=str(entry), remedy="put the folder itself there"
                )
            yield from _inside(entry, f"{prefix}{name}/")
        elif entry.is_file() and is_side_file(prefix + name):
            yield prefix + name, entry


def links_elsewhere(copied: Mapping[str, Path], folders: Iterable[Path]) -> dict[str, Path]:
    """Copied side files that are links, with where they lead, by name: those that lead out of every folder that was
    named, and are none of a model hub's cache, where each file is a link to ``../../blobs``."""
    allowed = [folder.resolve() for folder in folders]
    for folder in list(allowed):
        allowed += [parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots"]
    links = {name: path.resolve() for name, path in copied.items() if path.is_symlink()}
    return {name: end for name, end in links.items() if not any(end.is_relative_to(folder) for folder in allowed)}


def differing_side_files(template: Source, others: Iterable[Source]) -> list[str]:
    """Names of copied side files that another input holds with other content."""
    found = []
    for name, path in side_files(template).items():
        content = path.read_bytes()
        for checkpoint in others:
            other = checkpoint.folder / name if checkpoint.folder else None
            if other is not None and other != path and other.is_file() and other.read_bytes() != content:
                found.append(name)
                break
    return found


def adapted_config(content: bytes, dtypes: set[str], untied: bool) -> bytes:
    """``config.json`` with the output's dtype, and untied where the output is; else unchanged bytes."""
    try:
        config = json.loads(content.decode("utf-8"))
        if not isinstance(config, dict):
            return content
        changed = False
        if len(dtypes) == 1:
            changed = _set_dtype(config, TORCH_NAMES[next(iter(dtypes))])
        if untied:
            changed |= _untie(config)
        return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode() if changed else content
    except (ValueError, RecursionError):  # no JSON, too deep, or half a surrogate: nobody can read or write it
        return content


def _untie(config: dict[str, Any], depth: int = CONFIG_DEPTH) -> bool:
    changed = False
    for key, value in config.items():
        if isinstance(value, dict):
            changed |= depth > 0 and _untie(value, depth - 1)
        elif key == TIE and value is True:
            config[key] = False
            changed = True
    return changed


def _set_dtype(config: dict[str, Any], dtype: str, depth: int = CONFIG_DEPTH) -> bool:
    changed = False
    for key, value in config.items():
        if isinstance(value, dict):
            changed |= depth > 0 and _set_dtype(value, dtype, depth - 1)
        elif key in _DTYPE_KEYS and value in TORCH_NAMES.values() and value != dtype:
            config[key] = dtype
            changed = True
    return changed
