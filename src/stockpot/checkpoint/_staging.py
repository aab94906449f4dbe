"""OUT.partial: where an output grows, and how it becomes OUT all at once.

Files are preallocated; a tensor's journal line is written only after its bytes were synced; a lock dies with its
process. ``commit`` syncs everything and renames: OUT is absent, the old one, or whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stockpot import errors
from stockpot.checkpoint._descriptors import Descriptors, opened
from stockpot.checkpoint._dtypes import nbytes
from stockpot.checkpoint._journal import CLOSING, Journal, encode
from stockpot.checkpoint._layout import Spec
from stockpot.checkpoint._pickle_writer import offsets, seal, write_skeleton
from stockpot.checkpoint._replacing import (
    JOURNAL,
    LOCK,
    empty,
    partial_of,
    place_of,
    remove_partial,
    replace,
    sync_folder,
    unmark,
)

SYNC_SECONDS = 1.0
COPY_BYTES = 4 << 20


class Staging:
    """One output under way.

    ``key`` tells the job: a partial of the same key is continued, another's is refused unless ``overwrite``.
    ``finished``: journal records of what need not be done again.
    """

    def __init__(self, out: Path, key: str, *, resume: bool = True, overwrite: bool = False) -> None:
        self.out = out
        self.folder = partial_of(out)
        self.existed = self.folder.exists()
        self._replaced = place_of(out)
        self._files = Descriptors[str](lambda name: self.folder / name, os.O_RDWR | os.O_NOFOLLOW, os.fdatasync)
        self._unsynced: dict[str, None] = {}
        self._unsynced_folders: dict[Path, None] = {}
        self._sizes: dict[str, int] = {}
        self._spans: dict[str, list[tuple[int, int]]] = {}
        self._pending: list[dict[str, Any]] = []
        self._mutex = threading.Lock()
        self._wake = threading.Event()
        self._syncer: threading.Thread | None = None
        self._failure: OSError | None = None
        self._stop = False
        if self.folder.is_symlink():
            raise errors.OutputError("the place for the unfinished output is a symbolic link", file=str(self.folder))
        self._made = [parent for parent in self.folder.absolute().parents if not parent.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()
            try:
                self._journal = self._open_journal(key, resume, overwrite)
                self._sync_places()
            except BaseException as error:
                os.close(self._lock)
                if isinstance(error, OSError) and not isinstance(error, errors.StockpotError):
                    self._remove()
                raise
        except errors.StockpotError:
            raise
        except OSError as error:
            self._remove_folders()
            raise errors.OutputError(
                f"the output cannot be written there ({error.strerror})",
                file=str(out),
                remedy=_REMEDIES.get(error.errno or 0, "choose another --out"),
            ) from None

    @property
    def finished(self) -> list[dict[str, Any]]:
        """Records of what an earlier, interrupted run of the same job has finished."""
        return [record for record in self._journal.records if "job" not in record]

    def _sync_places(self) -> None:
        """The journal is on disk, and the way to it: before anything that it is to speak of."""
        for folder in (self.folder, self.folder.parent, *(made.parent for made in self._made)):
            sync_folder(folder)

    def _take_lock(self) -> int:
        fd = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(fd)
            raise errors.OutputLockedError(
                "another merge is writing there", file=str(self.folder), got=f"held by {holder}", remedy="wait for it"
            ) from None
        except OSError as error:
            os.close(fd)
            (self.folder / LOCK).unlink()
            self._remove_folders()
            raise errors.OutputError(
                f"the file system there gives no lock ({error.strerror}), so that two merges could spoil each other",
                file=str(self.folder),
                remedy="choose another --out, or mount it with locks",
            ) from None
        os.ftruncate(fd, 0)
        _write_all(fd, memoryview(f"process {os.getpid()} on {socket.gethostname()}\n".encode()), 0)
        return fd

    def _open_journal(self, key: str, resume: bool, overwrite: bool) -> Journal:
        path = self.folder / JOURNAL
        self._continued = path.exists()
        with contextlib.ExitStack() as opened_here:
            journal = Journal(path)
            opened_here.callback(journal.close)
            if self._is_continued(journal, key, resume, overwrite):
                opened_here.pop_all()
                return journal
        self._continued = False
        empty(self.folder)
        path.unlink()
        journal = Journal(path)
        journal.commit(encode({"job": key}))
        return journal

    def _is_continued(self, journal: Journal, key: str, resume: bool, overwrite: bool) -> bool:
        """Whether the partial is gone on from; False where it may be emptied; raises where it is another's."""
        owner = journal.records[0].get("job") if journal.records else None
        others = [entry for entry in self.folder.iterdir() if entry.name not in (LOCK, JOURNAL)]
        if owner == key and resume and all(_is_plain(entry) for entry in _walk(self.folder)):
            closed = next((n for n, record in enumerate(journal.records) if CLOSING in record), None)
            if closed is not None:  # cut off at the end, and under way again
                journal.forget(closed)
            return True
        if owner != key and (others or owner) and not (overwrite and owner):
            if not self._continued:  # somebody else's folder: leave no trace in it
                unmark(self.folder)
            what, remedy = (
                ("an unfinished output of another job", "finish it with its own command, or --overwrite discards it")
                if owner
                else ("a folder that is no unfinished output", "move it away, or choose another --out")
            )
            raise errors.OutputExistsError(f"{what} is there", file=str(self.folder), remedy=remedy)
        return False

    def create(self, name: str, size: int, head: bytes = b"") -> None:
        """Open a file of that size, allocated at once, with its first bytes."""
        path = self.folder / name
        try:
            self._make_folders(path)
            os.close(opened(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW))
            with self._files.use(name) as fd:
                if os.fstat(fd).st_size != size:
                    if self.finished:  # it is not the file that the journal speaks of
                        self._journal.forget()
                    os.ftruncate(fd, size)
                if size:
                    _allocate(fd, size)
                _write_all(fd, memoryview(head), 0)
        except OSError as error:
            raise _write_error(error, path) from error
        self._unsynced[name] = None
        self._sizes[name] = size

    def _make_folders(self, path: Path) -> None:
        """The folders of a file: below our own, which is there, or somebody removed it."""
        folders = [parent for parent in path.parents if self.folder in (parent, *parent.parents)]
        for folder in reversed(folders[:-1]):
            folder.mkdir(exist_ok=True)
        self._unsynced_folders.update(dict.fromkeys(folders))

    def create_pickle(self, name: str, specs: Sequence[Spec], aliases: Mapping[str, str]) -> dict[str, int]:
        """Open an archive of holes, made now or by an earlier run; offset of each tensor's bytes."""
        path = self.folder / name
        if self.finished and not path.exists():
            self._journal.forget()
        try:
            places = offsets(path) if self.finished else write_skeleton(path, specs, aliases)
        except errors.CheckpointError:
            # Cut off while it was sealed: what was finished cannot be told from it any more.
            self._journal.forget()
            places = write_skeleton(path, specs, aliases)
        except OSError as error:
            raise _write_error(error, path) from error
        self._make_folders(path)
        self._unsynced[name] = None
        self._sizes[name] = path.stat().st_size
        self._spans[name] = [(places[one], places[one] + nbytes(dtype, shape)) for one, dtype, shape in specs]
        return places

    def seal_pickle(self, name: str, provenance: bytes) -> None:
        """Finish an archive: its checksums and its provenance."""
        try:
            seal(self.folder / name, provenance, self._spans[name])
            self._unsynced[name] = None
            self._sizes[name] = (self.folder / name).stat().st_size
        except OSError as error:
            raise _write_error(error, self.folder / name) from error

    def write(self, name: str, offset: int, data: memoryview) -> None:
        """Write bytes at their place; thread-safe."""
        if self._failure is not None:
            raise _write_error(self._failure, self.folder)
        try:
            with self._files.use(name) as fd:
                _write_all(fd, data, offset)
                self._unsynced[name] = None  # after it: a sync meanwhile has not seen these bytes
        except OSError as error:
            raise _write_error(error, self.folder / name) from error

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a file being written."""
        with self._files.use(name) as fd:
            return os.pread(fd, size, offset)

    def sum_of(self, name: str) -> str:
        """SHA-256 of a file being written, as it is now."""
        digest = hashlib.sha256()
        for start in range(0, self._sizes[name], COPY_BYTES):
            digest.update(self.read(name, start, COPY_BYTES))
        return digest.hexdigest()

    def finish(self, record: Mapping[str, Any]) -> None:
        """Something is written whole; its journal line follows once its bytes are on disk."""
        with self._mutex:
            self._pending.append(dict(record))
            if self._syncer is None:  # one alone: another would outlive this output, and write to others' descriptors
                syncer = threading.Thread(target=self._sync_loop, name="stockpot-sync", daemon=True)
                with contextlib.suppress(RuntimeError):  # no more threads: what is finished is synced at the end
                    syncer.start()
                    self._syncer = syncer

    def _sync_loop(self) -> None:
        while not self._stop:
            self._wake.wait(SYNC_SECONDS)
            try:
                self._sync()
            except Exception as error:  # whoever writes next raises it
                self._failure = error if isinstance(error, OSError) else OSError(None, str(error))
                return

    def _sync(self) -> None:
        with self._mutex:
            records, self._pending = self._pending, []
        if not records:
            return
        self._sync_files()
        self._journal.commit(b"".join(map(encode, records)))

    def _sync_files(self) -> None:
        """What was written up to now is on disk afterwards."""
        while self._unsynced:
            # Taken off first: what is written meanwhile puts it back.
            name, _ = self._unsynced.popitem()
            with self._files.use(name) as fd:
                os.fdatasync(fd)
        while self._unsynced_folders:
            sync_folder(self._unsynced_folders.popitem()[0])

    def flush(self) -> None:
        """Stop the background syncing and put everything finished on disk."""
        self._stop = True
        self._wake.set()
        if self._syncer is not None:
            self._syncer.join()
        if self._failure is not None:
            raise _write_error(self._failure, self.folder)
        try:
            self._sync()
        except OSError as error:
            raise _write_error(error, self.folder) from error

    def add_file(self, name: str, content: bytes) -> None:
        """A small file, written whole."""
        self._write_whole(name, [content])

    def copy_file(self, name: str, source: Path) -> str:
        """A file of any size from elsewhere; returns the SHA-256 of its bytes."""
        digest = hashlib.sha256()

        def pieces() -> Iterator[bytes]:
            try:
                with open(opened(source, os.O_RDONLY), "rb") as file:
                    while piece := file.read(COPY_BYTES):
                        digest.update(piece)
                        yield piece
            except OSError as error:
                raise errors.RunError(
                    f"reading failed ({error.strerror})", file=str(source), remedy="check the disk"
                ) from error

        self._write_whole(name, pieces())
        return digest.hexdigest()

    def _write_whole(self, name: str, pieces: Iterable[bytes]) -> None:
        path = self.folder / name
        try:
            self._make_folders(path)
            fd = opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW)
            try:
                end = 0
                for piece in pieces:
                    _write_all(fd, memoryview(piece), end)
                    end += len(piece)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise _write_error(error, path) from error
        self._sizes[name] = end

    def commit(self, one_file: str | None = None, before_rename: Callable[[], None] = lambda: None) -> None:
        """Make it OUT: sync all, rename, sync the parent. ``one_file``: that file alone becomes OUT."""
        self.flush()
        before_rename()
        self._require_untouched()

        def close(aside: str, mark: str) -> None:
            self._journal.commit(encode({CLOSING: aside, "file": one_file, "old": mark}))

        try:
            self._sync_files()
            for folder, _, _ in os.walk(self.folder):
                sync_folder(Path(folder))
            source = self.folder if one_file is None else self.folder / one_file
            replace(source, self.out, self._replaced, close)
            if one_file is None:
                unmark(self.out)
            else:
                remove_partial(self.folder)
        except OSError as error:
            raise _write_error(error, self.out) from error
        self._close()

    def _require_untouched(self) -> None:
        """The folder is the one that this process has locked, and holds what was written and nothing else."""
        try:
            found = {name: (self.folder / name).lstat().st_size for name in self._sizes}
            held = os.fstat(self._lock)
            is_held = place_of(self.folder / LOCK) == (held.st_dev, held.st_ino)
        except OSError:
            is_held = False
        if is_held:
            known = {self.folder / name for name in (*self._sizes, JOURNAL, LOCK)}
            for entry in _walk(self.folder):  # what an earlier run has copied, and this one has not
                if entry not in known and not (entry.is_dir() and not entry.is_symlink()):
                    entry.unlink()
        if not is_held or found != self._sizes:
            raise errors.RunError(
                "the unfinished output was removed or changed while it was written",
                file=str(self.folder),
                remedy="run the same command again",
            )

    def keep(self) -> None:
        """Stop here; the partial stays and the same job goes on from it."""
        try:
            self.flush()
        finally:
            self._close()

    def discard(self) -> None:
        """Remove what this run made. A partial of the same job that was there before stays, to go on from."""
        self._stop = True
        self._wake.set()
        if self._syncer is not None:
            self._syncer.join()
        if not self.existed:
            self._remove()
        elif not self._continued:
            remove_partial(self.folder)
            self.folder.mkdir()
        self._close()  # the lock last: nobody else begins there before it is removed

    def _remove(self) -> None:
        """Remove what this run made."""
        if not self.existed:
            with contextlib.suppress(OSError):
                remove_partial(self.folder)
            self._remove_folders()

    def _remove_folders(self) -> None:
        """Remove the folders that this run made, where nothing is in them."""
        made = [] if self.existed else [self.folder, *self._made]
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _close(self) -> None:
        self._files.close()
        self._journal.close()
        os.close(self._lock)


def _walk(folder: Path) -> Iterator[Path]:
    """All that lies in a folder, links not followed."""
    for place, folders, files in os.walk(folder):
        yield from (Path(place) / name for name in (*folders, *files))


def _is_plain(entry: Path) -> bool:
    """Whether it is what we make: a regular file or a folder. Through a link another's file would be written."""
    return stat.S_IFMT(entry.lstat().st_mode) in (stat.S_IFREG, stat.S_IFDIR)


def _allocate(fd: int, size: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow the process more open files (ulimit -n)"),
}


def _write_error(error: OSError, path: Path) -> errors.RunError:
    remedy = _REMEDIES.get(error.errno or 0, "check the disk")
    return errors.RunError(
        f"writing failed ({error.strerror})", file=str(path), remedy=f"{remedy}, then run the same command: it goes on"
    )
