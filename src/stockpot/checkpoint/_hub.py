"""Hub ids: which commit of which model, and its files. Through ``huggingface_hub``, its cache and its switches."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from stockpot import errors
from stockpot.checkpoint._files import is_inside
from stockpot.checkpoint._hub_errors import asked

_ID = re.compile(r"^(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?$")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LISTINGS = ".stockpot"
"""Folder of the model's cache in which its files are listed, so that without the hub it is known what is missing."""


def is_hub_id(ref: str) -> bool:
    """Whether a reference that is no path has the form ``name/name[@revision]``."""
    return _ID.fullmatch(ref) is not None


def not_there(ref: str) -> NoReturn:
    """Refuse what can only be a path."""
    raise errors.NotFoundError("no such file or folder", file=ref, remedy="check the path")


@dataclass(frozen=True)
class Entry:
    """A file on the hub: its bytes, and the name that the cache gives to its content."""

    size: int | None
    blob: str = ""


@dataclass(frozen=True)
class Repository:
    """One commit of a model. ``ref`` is what was typed; ``trouble`` is why the hub is not to be asked."""

    ref: str
    name: str
    revision: str
    commit: str
    entries: Mapping[str, Entry]
    trouble: errors.InputError | None = None
    notes: tuple[str, ...] = ()

    @property
    def cache(self) -> Path:
        """Its folder in the cache."""
        return _cache(self.name)

    @property
    def snapshot(self) -> Path:
        """Where the cache has the files of this commit."""
        return self.cache / "snapshots" / self.commit

    def label(self, name: str) -> str:
        """What messages call one of its files."""
        return f"{self.ref}/{name}" if name else self.ref

    def remember(self, *, is_whole: bool) -> None:
        """Keep the list of its files; and, as the library does, of which commit the revision was the name."""
        if self.trouble is not None:
            return
        with contextlib.suppress(OSError):  # a cache that others fill may be read only
            listing = self.cache / _LISTINGS / f"{self.commit}.json"
            if not listing.is_file():
                _write(listing, json.dumps({name: [own.size, own.blob] for name, own in self.entries.items()}))
            ref = self.cache / "refs" / self.revision
            if self.revision != self.commit and (is_whole or not ref.is_file()):
                _write(ref, self.commit)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def find(ref: str, commit: str = "") -> Repository:
    """The commit that a Hub id means, or this one of its commits; NotFoundError for what is neither path nor id.

    Cost: one request; none where ``HF_HUB_OFFLINE`` says so. A hub that cannot be reached is done without where the
    cache knows the commit.
    """
    match = _ID.fullmatch(ref)
    if match is None:
        return not_there(ref)
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants
        from huggingface_hub.errors import OfflineModeIsEnabled
    except ImportError:
        raise errors.NotFoundError(
            "no such path, and Hub ids need huggingface_hub, which is not installed", file=ref,
            remedy="check the path, or pip install 'stockpot[hub]'",
        ) from None  # fmt: skip
    name, revision = match["repo"], commit or match["revision"] or "main"
    if ".." in PurePosixPath(revision).parts or revision.startswith("/"):
        return not_there(ref)

    def ask() -> Any:
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled
        wait = constants.HF_HUB_ETAG_TIMEOUT
        return hub.HfApi().model_info(name, revision=revision, files_metadata=True, timeout=wait)

    try:
        info = asked(ask, ref, is_id=True)
    except errors.HubError as error:
        return _from_cache(ref, name, revision, error, is_offline=bool(constants.HF_HUB_OFFLINE))
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise errors.HubError("the hub does not say which commit this is", file=ref, got=repr(info.sha))
    entries = {}
    for one in info.siblings or ():
        path, size = one.rfilename, one.size
        is_size = size is None or (type(size) is int and 0 <= size < 1 << 63)
        if not isinstance(path, str) or not is_size:
            raise errors.HubError("the hub's list of files makes no sense", file=ref, got=f"{path!r}: {size!r}"[:80])
        entries[path] = Entry(size, _blob(one))
        if not is_inside(path):
            raise errors.HubError("the hub names a file outside the model", file=ref, got=repr(path))
    return Repository(ref, name, revision, info.sha, entries)


def hub_ids(ref: str, commit: str) -> list[tuple[str, str]]:
    """The Hub ids in a reference, each with its commit; several are joined by ``+``, as what was opened says them.

    >>> hub_ids("a/b@v1", "0f"), hub_ids("a/b+./c+d/e", "0f++1e"), hub_ids("./a+b", "")
    ([('a/b@v1', '0f')], [('a/b', '0f'), ('d/e', '1e')], [])
    """
    if "+" not in commit:
        return [(ref, commit)] if commit else []
    (first, _, last), (earlier, _, own) = ref.rpartition("+"), commit.rpartition("+")
    return hub_ids(first, earlier) + hub_ids(last, own)


def current_commit(ref: str) -> str:
    """The commit that a Hub id means now, as far as can be known. Cost: one request."""
    return find(ref).commit


def _blob(sibling: Any) -> str:
    """Large files are cached under their own digest, others under git's."""
    lfs = sibling.lfs
    found = sibling.blob_id if lfs is None else lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256
    return found if isinstance(found, str) and found.isalnum() else ""


def _from_cache(ref: str, name: str, revision: str, trouble: errors.HubError, *, is_offline: bool) -> Repository:
    """What the cache knows of a revision; ``trouble`` itself where that is nothing."""
    if is_offline:
        nothing: errors.CheckpointError = errors.NotFoundError(trouble.what, file=ref, remedy=trouble.remedy)
        trouble = errors.HubError("not in the hub's cache", file=ref, remedy=trouble.remedy)
    else:
        nothing = trouble
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (_cache(name) / "refs" / revision).read_text("ascii").strip()
        except (OSError, ValueError):
            raise nothing from None
    snapshot = _cache(name) / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
        raise nothing
    try:
        listing = json.loads((_cache(name) / _LISTINGS / f"{commit}.json").read_text("utf-8"))
        entries = {path: Entry(size, blob) for path, (size, blob) in listing.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        files = (path for path in snapshot.rglob("*") if path.is_file())
        entries = {path.relative_to(snapshot).as_posix(): Entry(path.stat().st_size) for path in files}
    note = f"{ref}: {trouble.what.removeprefix('no such path, and ')}; the cached copy of commit {commit[:12]} is used"
    return Repository(ref, name, revision, commit, entries, trouble, () if is_offline else (note,))


def _cache(name: str) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return cache_folder() / repo_folder_name(repo_id=name, repo_type="model")


def cache_folder() -> Path:
    """Where the library keeps what it downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
