"""OUT.partial: where an output grows, and how it becomes OUT all at once.

Files are preallocated; a tensor's journal line is written only after its bytes were synced; a lock dies with its
process. ``commit`` syncs everything and renames: OUT is absent, the old one, or whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stockpot import errors
from stockpot.checkpoint._descriptors import Descriptors, opened
from stockpot.checkpoint._journal import Journal, encode
from stockpot.checkpoint._layout import Spec
from stockpot.checkpoint._pickle_writer import offsets, read_provenance, seal, write_skeleton

JOURNAL = ".stockpot-journal"
LOCK = ".stockpot-lock"
MARK = "stockpot.json"
SYNC_SECONDS = 1.0
COPY_BYTES = 4 << 20
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def partial_of(out: Path) -> Path:
    """Where OUT is staged."""
    return out.with_name(out.name + ".partial")


def require_outside(out: Path, inputs: Iterable[Path]) -> None:
    """OUT has a name of its own; it, OUT.partial and OUT.old lie outside all inputs, and the inputs outside them."""
    remedy = "choose another --out"
    try:
        target = out.absolute().resolve()
        own = [target, *(target.with_name(target.name + suffix) for suffix in (".partial", ".old") if target.name)]
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


def require_free(out: Path, overwrite: bool) -> None:
    """OUT does not exist, or may be replaced."""
    if not (out.exists() or out.is_symlink()):
        return
    if out.is_symlink():
        raise errors.OutputExistsError("the output is a symbolic link", file=str(out), remedy="choose another --out")
    if not overwrite:
        raise errors.OutputExistsError(
            "the output exists", file=str(out), remedy="choose another --out, or --overwrite"
        )
    if not _is_ours(out):
        raise errors.OutputExistsError(
            "the output exists and was not made by stockpot: it is not replaced",
            file=str(out),
            remedy="remove it yourself, or choose another --out",
        )


def _is_ours(out: Path) -> bool:
    if out.is_dir():
        return not any(out.iterdir()) or (out / MARK).is_file()
    if out.suffix == ".pt":
        return read_provenance(out) is not None
    try:
        from stockpot.checkpoint._open import open_local

        return "stockpot" in open_local(str(out), out).metadata
    except errors.StockpotError:
        return False


class Staging:
    """One output under way.

    ``key`` tells the job: a partial of the same key is continued, another's is refused unless ``overwrite``.
    ``finished``: journal records of what need not be done again.
    """

    def __init__(self, out: Path, key: str, *, resume: bool = True, overwrite: bool = False) -> None:
        self.out = out
        self.folder = partial_of(out)
        self.existed = self.folder.exists()
        self._files = Descriptors[str](lambda name: self.folder / name, os.O_RDWR | os.O_NOFOLLOW, os.fdatasync)
        self._unsynced: dict[str, None] = {}
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
            self._journal = self._open_journal(key, resume, overwrite)
        except OSError as error:
            if isinstance(error, errors.StockpotError):
                raise
            raise errors.OutputError(
                f"the output cannot be written there ({error.strerror})", file=str(out), remedy="choose another --out"
            ) from None

    @property
    def finished(self) -> list[dict[str, Any]]:
        """Records of what an earlier, interrupted run of the same job has finished."""
        return [record for record in self._journal.records if "job" not in record]

    def _take_lock(self) -> int:
        fd = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(fd)
            raise errors.OutputLockedError(
                "another merge is writing there", file=str(self.folder), got=f"held by {holder}", remedy="wait for it"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return fd

    def _open_journal(self, key: str, resume: bool, overwrite: bool) -> Journal:
        path = self.folder / JOURNAL
        self._continued = path.exists()
        journal = Journal(path)
        owner = journal.records[0].get("job") if journal.records else None
        others = [entry for entry in self.folder.iterdir() if entry.name not in (LOCK, JOURNAL)]
        if owner == key and resume:
            return journal
        if owner != key and (others or owner) and not (overwrite and owner):
            journal.close()
            if not self._continued:  # somebody else's folder: leave no trace in it
                path.unlink()
                (self.folder / LOCK).unlink()
            os.close(self._lock)
            what, remedy = (
                ("an unfinished output of another job", "finish it with its own command, or --overwrite discards it")
                if owner
                else ("a folder that is no unfinished output", "move it away, or choose another --out")
            )
            raise errors.OutputExistsError(f"{what} is there", file=str(self.folder), remedy=remedy)
        self._continued = False
        journal.close()
        path.unlink()
        for entry in others:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        journal = Journal(path)
        journal.commit(encode({"job": key}))
        return journal

    def create(self, name: str, size: int, head: bytes = b"") -> None:
        """Open a file of that size, allocated at once, with its first bytes."""
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
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
        self._unsynced[name] = None
        return places

    def seal_pickle(self, name: str, provenance: bytes) -> None:
        """Finish an archive: its checksums and its provenance."""
        try:
            seal(self.folder / name, provenance)
            self._unsynced[name] = None
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

    def finish(self, record: Mapping[str, Any]) -> None:
        """Something is written whole; its journal line follows once its bytes are on disk."""
        with self._mutex:
            self._pending.append(dict(record))
        if self._syncer is None:
            self._syncer = threading.Thread(target=self._sync_loop, name="stockpot-sync", daemon=True)
            self._syncer.start()

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
            with source.open("rb") as file:
                while piece := file.read(COPY_BYTES):
                    digest.update(piece)
                    yield piece

        self._write_whole(name, pieces())
        return digest.hexdigest()

    def _write_whole(self, name: str, pieces: Iterable[bytes]) -> None:
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
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

    def commit(self, one_file: str | None = None, before_rename: Callable[[], None] = lambda: None) -> None:
        """Make it OUT: sync all, rename, sync the parent. ``one_file``: that file alone becomes OUT."""
        self.flush()
        try:
            self._sync_files()
        except OSError as error:
            raise _write_error(error, self.folder) from error
        for folder, _, _ in os.walk(self.folder):
            _sync_folder(Path(folder))
        before_rename()
        source = self.folder if one_file is None else self.folder / one_file
        try:
            _replace(source, self.out)
            _sync_folder(self.out.absolute().parent)
        except OSError as error:
            raise _write_error(error, self.out) from error
        self._close()
        if one_file is None:
            for name in (JOURNAL, LOCK):
                (self.out / name).unlink(missing_ok=True)
        else:
            shutil.rmtree(self.folder)

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
        self._close()
        if not self.existed:
            shutil.rmtree(self.folder, ignore_errors=True)
            for parent in self._made:
                with contextlib.suppress(OSError):
                    parent.rmdir()
        elif not self._continued:
            for entry in self.folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def _close(self) -> None:
        self._files.close()
        self._journal.close()
        os.close(self._lock)


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


def _write_error(error: OSError, path: Path) -> errors.RunError:
    remedy = (
        "free some space, then run the same command: it goes on" if error.errno == errno.ENOSPC else "check the disk"
    )
    return errors.RunError(f"writing failed ({error.strerror})", file=str(path), remedy=remedy)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _replace(source: Path, out: Path) -> None:
    """Rename, exchanging with an old OUT where there is one; the old one is then removed."""
    if not out.exists():
        source.rename(out)
        return
    if out.is_file():
        source.replace(out)
        return
    old = out.with_name(out.name + ".old")
    if _exchange(source, out):
        shutil.rmtree(source)
        return
    shutil.rmtree(old, ignore_errors=True)
    out.rename(old)
    source.rename(out)
    shutil.rmtree(old)


def _exchange(source: Path, out: Path) -> bool:
    """Swap two folders in one step, where the system can (Linux, renameat2)."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(out), _RENAME_EXCHANGE) == 0)


def repair(out: Path) -> None:
    """Undo a replacement that was cut off between its two renames: OUT.old without OUT becomes OUT again."""
    old = out.with_name(out.name + ".old")
    if old.is_dir() and (old / MARK).is_file() and not out.exists():
        old.rename(out)
