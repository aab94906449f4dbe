"""Where an output may go: outside all inputs, and in place of nothing but an output of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from stockpot import errors
from stockpot.checkpoint._files import require_readable
from stockpot.checkpoint._header import STATISTICS
from stockpot.checkpoint._pickle_writer import is_sealed_archive, read_provenance
from stockpot.checkpoint._replacing import OLD, PARTIAL, is_ours


def require_outside(out: Path, inputs: Iterable[Path]) -> None:
    """OUT has a name of its own; it, OUT.partial and OUT.old lie outside all inputs, and the inputs outside them."""
    remedy = "choose another --out"
    try:
        target = out.absolute().resolve()
        own = [target, *(target.with_name(target.name + suffix) for suffix in (PARTIAL, OLD) if target.name)]
        for place in own:
            with contextlib.suppress(FileNotFoundError):
                place.stat()
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise errors.OutputError(f"the output cannot have that name ({why})", remedy=remedy) from None
    for given in inputs:
        source = given.absolute().resolve()
        if any(place == source or place in source.parents for place in own) or source in target.parents:
            raise errors.OutputError(
                "the output and an input may not lie inside each other",
                file=str(out),
                got=f"input {given}",
                remedy=remedy,
            )
    if not out.name or out.name == "..":
        raise errors.OutputError("the output needs a name of its own", got=repr(str(out)), remedy=remedy)


def require_free(out: Path, overwrite: bool, is_one_file: bool = False) -> None:
    """OUT does not exist, or may be replaced."""
    if not (out.exists() or out.is_symlink()):
        return
    if out.is_symlink():
        raise errors.OutputExistsError("the output is a symbolic link", file=str(out), remedy="choose another --out")
    if not overwrite:
        raise errors.OutputExistsError(
            "the output exists", file=str(out), remedy="choose another --out, or --overwrite"
        )
    if is_one_file and out.is_dir():
        raise errors.OutputExistsError(
            "the output is a folder, and its name asks for one file", file=str(out), remedy="choose another --out"
        )
    if not _is_ours(out):
        raise errors.OutputExistsError(
            "the output exists and was not made by stockpot: it is not replaced",
            file=str(out),
            remedy="remove it yourself, or choose another --out",
        )


def _is_ours(out: Path) -> bool:
    if out.is_dir():
        return is_ours(out)
    try:
        if out.suffix == ".pt":
            require_readable(out)
            return read_provenance(out) is not None and is_sealed_archive(out) is True
        from stockpot.checkpoint._open import open_local

        return not {"stockpot", STATISTICS}.isdisjoint(open_local(str(out), out).metadata)
    except errors.StockpotError:
        return False
