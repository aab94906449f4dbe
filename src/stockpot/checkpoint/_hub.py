"""Hub ids, through ``huggingface_hub`` with its cache and its offline switch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

from stockpot import errors

_ID = re.compile(r"^(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?$")
_WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "LICENSE*")


def is_hub_id(ref: str) -> bool:
    """Whether a reference that is no path has the form ``name/name[@revision]``."""
    return _ID.fullmatch(ref) is not None


def not_there(ref: str) -> NoReturn:
    """Refuse what can only be a path."""
    raise errors.NotFoundError("no such file or folder", file=ref, remedy="check the path")


def fetch(ref: str) -> Path:
    """Local folder of a Hub id's snapshot; raises NotFoundError for anything that is neither path nor reachable id."""
    match = _ID.fullmatch(ref)
    if match is None:
        return not_there(ref)
    try:
        import huggingface_hub
    except ImportError:
        raise errors.NotFoundError(
            "no such path, and Hub ids need huggingface_hub",
            file=ref,
            remedy="check the path, or pip install 'stockpot[hub]'",
        ) from None
    try:
        found = huggingface_hub.snapshot_download(
            match["repo"], revision=match["revision"], allow_patterns=list(_WANTED)
        )
    except Exception as error:  # its own tree mixes requests', httpx's and OS errors
        raise errors.NotFoundError(
            f"no such path, and not found or not reachable as a Hub id ({type(error).__name__})",
            file=ref,
            remedy="check the path, the id, the network or HF_HUB_OFFLINE",
        ) from None
    return Path(found)
