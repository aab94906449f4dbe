"""From what the user typed to a source: a checkpoint, or ``BASE+ADAPTER``."""

from __future__ import annotations

from pathlib import Path

from stockpot import errors
from stockpot.adapters._adapted import adapted
from stockpot.adapters._peft import is_adapter, read_adapter
from stockpot.checkpoint import Source, is_local, open_checkpoint


def open_source(ref: str | Path, *, commit: str = "") -> Source:
    """Open a checkpoint, or a base with a LoRA adapter on it, by headers alone.

    ``ref``: what ``checkpoint.open_checkpoint`` opens, or two such joined by ``+``, the second an adapter as PEFT saves
    it; an existing path wins. Several are put on one after the other. Raises CheckpointError kinds, AdapterError where
    an adapter is not understood or does not fit its base. ``commit``: of Hub ids the commits to open, as a source says
    them that was opened before. Cost: the headers.
    """
    typed = str(ref)
    base, plus, adapter = _divided(typed)
    if not plus or not base or not adapter or ("+" not in commit and is_local(ref)):
        return open_checkpoint(ref, commit=commit)
    of_base, _, of_adapter = commit.rpartition("+")
    found = open_checkpoint(adapter, commit=of_adapter)
    if not is_adapter(found):
        raise errors.AdapterError(
            "what follows the + is no adapter",
            file=adapter,
            expected="adapter_config.json and adapter_model.safetensors",
        )
    return adapted(typed, open_source(base, commit=of_base), read_adapter(found))


def _divided(ref: str) -> tuple[str, str, str]:
    """At the last plus after which there is something; at the last one where nothing tells.

    >>> _divided("base+./adapter"), _divided("base")
    (('base', '+', './adapter'), ('', '', 'base'))
    """
    for place in range(len(ref) - 1, 0, -1):
        if ref[place] == "+" and is_local(ref[place + 1 :] or "+"):
            return ref[:place], "+", ref[place + 1 :]
    return ref.rpartition("+")
