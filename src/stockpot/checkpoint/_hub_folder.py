"""A model on a hub as a folder that can be read: headers by range, small files and what is wanted whole by download."""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, cast

from stockpot import errors
from stockpot.checkpoint._files import FileIdentity, View, identity, require_readable
from stockpot.checkpoint._folder import PICKLE_SUFFIXES, is_weights
from stockpot.checkpoint._hub import Repository
from stockpot.checkpoint._hub_errors import CutShortError, asked
from stockpot.checkpoint._pickle import ARCHIVE_ERRORS, LOCAL_HEADER_BYTES, stored_name
from stockpot.checkpoint._side_names import is_side_file

BLOCK_BYTES = 32 << 10
"""What one request asks for at least: the header of most files."""
KEPT_BLOCKS = 256
SKIPPED_BYTES = 1 << 20
"""How far into a file a server is followed that sends it from its beginning, whatever part was asked for."""
SMALL_FILE_CAP = 100 << 20
"""Largest configuration or index that is downloaded before the plan stands."""
CONNECTIONS = 8


class HubFolder:
    """One commit of a model. What is in the cache is read there."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.weights: list[str] = []
        """Files of weights that were opened, in order."""
        self._shards: list[str] = []
        self._opened: dict[str, RangeFile] = {}
        self._sizes: dict[str, int] = {}

    def names(self, folder: str) -> list[str]:
        """What lies in a folder of it."""
        prefix = f"{folder}/" if folder else ""
        found = set()
        for path in self.repository.entries:
            if path.startswith(prefix):
                name, slash, _ = path[len(prefix) :].partition("/")
                found.add(name + slash)
        return sorted(found)

    def open(self, name: str) -> BinaryIO:
        """From the cache; else weights by range, and anything else downloaded."""
        if (path := self.local(name)) is None and not _is_weight_data(name):
            self.download([name])
            path = self.local(name)
        if _is_weight_data(name):
            self.weights.append(name)
        if path is not None:
            require_readable(path)
            return path.open("rb")
        self._require_reachable(name)
        if name not in self._opened:
            self._open_together([name, *self._shards])
        return cast(BinaryIO, self._opened[name])

    def _open_together(self, names: Iterable[str]) -> None:
        """The first bytes of several files at once: one after another, a hundred shards are a minute of waiting."""
        files = {
            name: RangeFile(self, name)
            for name in dict.fromkeys(names)
            if name not in self._opened and self.local(name) is None
        }
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(RangeFile.begin, files.values()))
        self._opened.update(files)

    def identity(self, name: str, header_digest: str) -> FileIdentity:
        """That of the cached file; of one that is still on the hub, its name, size and header."""
        if (path := self.cached(name)) is not None:
            return identity(path, header_digest)
        return FileIdentity(self.label(name), header_digest, self.size(name), 0, 0, 0)

    def label(self, name: str) -> str:
        """The id as it was typed, and the file."""
        return self.repository.label(name)

    def require(self, name: str, index: str) -> None:
        """The hub has it."""
        if name in self.repository.entries:
            self._shards.append(name)
            return
        if self.repository.trouble is not None:
            self._require_reachable(name)
        raise errors.ShardIndexError(
            "the index names a file that is not there", file=self.label(index), got=repr(name),
            remedy="the model on the hub is not whole: ask who keeps it, or take another revision",
        )  # fmt: skip

    def cached(self, name: str) -> Path | None:
        """A file of this commit in the cache."""
        path = self.repository.snapshot / name
        return path if path.is_file() else None

    def local(self, name: str) -> Path | None:
        """The same content in the cache, be it of another commit."""
        if (path := self.cached(name)) is not None:
            return path
        entry = self.repository.entries.get(name)
        blob = self.repository.cache / "blobs" / entry.blob if entry is not None and entry.blob else None
        if blob is not None and self.repository.trouble is None and blob.is_file():
            return blob
        return None

    @property
    def is_local(self) -> bool:
        """Whether all files of weights are there under their names."""
        return all(self.cached(name) is not None for name in self.weights)

    def wanted(self, *, side_files: bool) -> list[str]:
        """Files that a merge needs and this commit's part of the cache lacks: weights, and what is copied beside."""
        names = list(dict.fromkeys(self.weights))
        if side_files:
            names += [name for name in self.repository.entries if is_side_file(name)]
        return [name for name in names if self.cached(name) is None]

    def missing_bytes(self, *, side_files: bool) -> int:
        """Bytes that a download of them would move."""
        return sum(self.size(name) for name in self.wanted(side_files=side_files) if self.local(name) is None)

    def size(self, name: str) -> int:
        """Bytes of a file, as the hub states them."""
        entry = self.repository.entries.get(name)
        if entry is not None and entry.size is not None:
            return entry.size
        if (path := self.cached(name)) is not None:
            return path.stat().st_size
        if name in self._sizes:
            return self._sizes[name]
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(self.repository.name, name, revision=self.repository.commit)
        size = asked(lambda: get_hf_file_metadata(url).size, self.label(name))
        if size is None:
            raise errors.HubError("the hub does not say how long the file is", file=self.label(name))
        return self._sizes.setdefault(name, int(size))

    def download(self, names: Sequence[str]) -> None:
        """Into the cache, whole, by the library; what is there is left alone."""
        from huggingface_hub import hf_hub_download

        own = self.repository
        for name in names:
            if self.cached(name) is not None:
                continue
            self._require_reachable(name)
            if not _is_weight_data(name) and not is_side_file(name) and self.size(name) > SMALL_FILE_CAP:
                raise errors.HubError(
                    "absurdly large for what it is called", file=self.label(name), got=f"{self.size(name)} bytes"
                )
            download = functools.partial(hf_hub_download, own.name, name, revision=own.commit)
            found = Path(asked(download, self.label(name)))
            stated, got = own.entries[name].size, found.stat().st_size
            if stated is not None and stated != got:
                raise errors.HubError(
                    "the download has another size than the hub states", file=self.label(name),
                    expected=f"{stated} bytes", got=got, remedy=f"take {found} out of the cache, and try again",
                )  # fmt: skip
            own.remember(is_whole=False)

    def fetch(self, *, side_files: bool) -> None:
        """Download what a merge needs."""
        self.download(self.wanted(side_files=side_files))
        self.repository.remember(is_whole=True)

    def _require_reachable(self, name: str) -> None:
        """The hub may be asked for a file, or the error says which could not be had."""
        trouble = self.repository.trouble
        if trouble is not None:
            said = trouble.what.removeprefix("no such path, and ")
            raise type(trouble)(said, file=self.label(name), got=trouble.got, remedy=trouble.remedy)

    def ranges(self, names: Sequence[str]) -> RangePool:
        """Reads from numbered files, where they are."""
        return RangePool(self, names)

    def range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes of a file on the hub, exactly these. Cost: one request."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented there, not listed in __all__
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        url = hf_hub_url(self.repository.name, name, revision=self.repository.commit)
        wait = constants.HF_HUB_DOWNLOAD_TIMEOUT

        def ask() -> bytes:
            headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
            with get_session().stream("GET", url, headers=headers, timeout=wait) as response:
                hf_raise_for_status(response)
                if response.status_code == 200 and stop <= SKIPPED_BYTES:
                    return _body(response.iter_raw(), stop)[start:]
                if response.status_code != 206 or not _is_range(response.headers.get("Content-Range"), start, stop):
                    raise errors.HubError(
                        "the hub does not serve parts of files", file=self.label(name),
                        expected=f"bytes {start}-{stop - 1}",
                        got=response.headers.get("Content-Range") or response.status_code,
                        remedy="download the model first (hf download), and give HF_HUB_OFFLINE=1",
                    )  # fmt: skip
                return _body(response.iter_raw(), stop - start)

        return asked(ask, self.label(name))


def _body(pieces: Iterable[bytes], size: int) -> bytes:
    """So many bytes; a server that sends more is not listened to, one that sends fewer was cut off."""
    found = bytearray()
    for piece in pieces:
        found += piece
        if len(found) >= size:
            break
    if len(found) < size:
        raise CutShortError
    return bytes(found[:size])


def _is_range(stated: str | None, start: int, stop: int) -> bool:
    return stated is not None and stated.partition("/")[0].split() == ["bytes", f"{start}-{stop - 1}"]


def _is_weight_data(name: str) -> bool:
    """Whether it holds weights; an index does not."""
    return is_weights(name.rpartition("/")[2]) and not name.endswith(".json")


def _local_header(member: zipfile.ZipInfo) -> tuple[int, int]:
    """Where the header before a member lies, with its name."""
    return member.header_offset, member.header_offset + LOCAL_HEADER_BYTES + len(stored_name(member))


MEMBERS_CAP = 20_000
"""Members of an archive that are asked for one by one, many at a time."""


class RangeFile(io.RawIOBase):
    """A file on the hub, read in blocks of which the last few are kept."""

    def __init__(self, folder: HubFolder, name: str) -> None:
        super().__init__()
        self._folder, self._name = folder, name
        self._size = folder.size(name)
        self._place = 0
        self._blocks: dict[int, bytes] = {}
        self._pieces: dict[int, bytes] = {}

    def begin(self) -> None:
        """Fetch what a header is read from: the first block; of an archive also its list, and all members' headers."""
        if self._size:
            self._load(0, 1)
        if self._name.endswith(PICKLE_SUFFIXES) and self._blocks.get(0, b"").startswith(b"PK\x03\x04"):
            try:
                with zipfile.ZipFile(cast(BinaryIO, self)) as archive:
                    places = [_local_header(member) for member in archive.infolist()]
            except ARCHIVE_ERRORS as error:
                if isinstance(error, errors.StockpotError):
                    raise
                return  # whoever reads it says what is wrong with it
            self._place = 0
            far = [
                (start, stop) for start, stop in places
                if start >= 0 and stop <= self._size and start // BLOCK_BYTES not in self._blocks
            ]  # fmt: skip
            if len(far) > MEMBERS_CAP:
                return  # its header is read as far as is needed, a block at a time
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                found = pool.map(lambda piece: self._folder.range(self._name, *piece), far)
                self._pieces = {start: data for (start, _), data in zip(far, found, strict=True)}

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """The next place to read at."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise ValueError("a place before the file")
        self._place = origin + offset
        return self._place

    def tell(self) -> int:
        """The next place to read at."""
        return self._place

    def close(self) -> None:
        """Nothing is open: what was fetched stays, for the next who opens it."""
        self._place = 0

    def read(self, size: int | None = -1) -> bytes:
        """All that is asked for, or as far as the file goes."""
        rest = max(self._size - self._place, 0)
        count = rest if size is None or size < 0 else min(size, rest)
        begin = self._place
        self._place += count
        if count <= len(self._pieces.get(begin, b"")):
            return self._pieces[begin][:count] if count else b""
        first, last = begin // BLOCK_BYTES, (begin + count - 1) // BLOCK_BYTES
        absent = [number for number in range(first, last + 1) if number not in self._blocks]
        if absent:
            self._load(absent[0], absent[-1] + 1)
        data = b"".join(self._blocks[number] for number in range(first, last + 1))
        while len(self._blocks) > KEPT_BLOCKS:
            del self._blocks[next(iter(self._blocks))]
        start = begin - first * BLOCK_BYTES
        return data[start : start + count]

    def _load(self, first: int, stop: int) -> None:
        start, end = first * BLOCK_BYTES, min(stop * BLOCK_BYTES, self._size)
        data = self._folder.range(self._name, start, end)
        for number in range(first, stop):
            at = (number - first) * BLOCK_BYTES
            self._blocks[number] = data[at : at + BLOCK_BYTES]


class RangePool:
    """Range reads from numbered files of a model on the hub: each read is a request."""

    def __init__(self, folder: HubFolder, names: Sequence[str]) -> None:
        self._folder, self._names = folder, tuple(names)

    def read_into(self, file: int, offset: int, out: memoryview) -> None:
        """Fill ``out`` from byte ``offset`` on."""
        name = self._names[file]
        path = self._folder.local(name)
        if path is None:
            out[:] = self._folder.range(name, offset, offset + len(out)) if len(out) else b""
            return
        with path.open("rb", buffering=0) as stream:
            stream.seek(offset)
            done = 0
            while done < len(out):
                got = stream.readinto(out[done:])
                if not got:
                    raise errors.InputChangedError("the file became shorter while it was read", file=str(path))
                done += got

    def view(self, file: int, offset: int, size: int) -> View | None:
        """There is none."""
        return None

    def drop_view(self, file: int, offset: int, size: int) -> None:
        """There is none."""

    def close(self) -> None:
        """Nothing is open."""
