"""Results of evaluations, kept in one SQLite file: a run that was killed goes on, and nothing is evaluated twice.

Keyed by content: the mixture's (digests of the inputs, coefficients) and the evaluator's (name, options, code, data).
Several processes may use one file at once; each result is a transaction of its own.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from stockpot import errors
from stockpot.evaluate._scores import Scores

FORMAT = 1
BUSY_SECONDS = 60.0
_TABLES = """
CREATE TABLE IF NOT EXISTS results (
  mixture TEXT NOT NULL, evaluator TEXT NOT NULL, label TEXT NOT NULL, named TEXT NOT NULL, scores TEXT NOT NULL,
  logits BLOB, labels BLOB, seconds REAL NOT NULL, made TEXT NOT NULL, PRIMARY KEY (mixture, evaluator));
CREATE TABLE IF NOT EXISTS states (key TEXT PRIMARY KEY, state BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS contents (identity TEXT PRIMARY KEY, digest TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Entry:
    """One kept result: what was scored, by what, when, and in how many seconds."""

    label: str
    evaluator: str
    values: Mapping[str, float]
    seconds: float
    made: str
    has_logits: bool


def default_cache() -> Path:
    """``$STOCKPOT_CACHE``, else ``stockpot/evaluations.sqlite`` in the user's cache folder."""
    if stated := os.environ.get("STOCKPOT_CACHE"):
        return Path(stated).expanduser()
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "stockpot" / "evaluations.sqlite"


def content_key(content: Mapping[str, Any]) -> str:
    """Digest of plain data."""
    return str(xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, default=str).encode()))


class ResultCache:
    """Open for as long as the object lives; ``path`` None keeps results in memory."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise errors.OutputError(
                    f"the cache's folder cannot be made ({error.strerror})",
                    file=str(path.parent),
                    remedy="give --cache FILE, or --cache none",
                ) from None
        with self._telling():
            self._database = sqlite3.connect(
                ":memory:" if path is None else str(path), timeout=BUSY_SECONDS, check_same_thread=False
            )
            weakref.finalize(self, self._database.close)
            (found,) = self._database.execute("PRAGMA user_version").fetchone()
            if found not in (0, FORMAT):
                raise errors.InputError(
                    "the cache was made by another version", file=str(path), expected=FORMAT, got=found,
                    remedy="give another --cache, or remove the file",
                )  # fmt: skip
            with self._database:
                for statement in _TABLES.split(";"):
                    self._database.execute(statement)
                self._database.execute(f"PRAGMA user_version = {FORMAT}")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """One line for what SQLite raises; one thread at a time."""
        try:
            with self._lock:
                yield
        except sqlite3.Error as error:
            raise errors.InputError(
                f"the cache of results cannot be used ({error})", file=str(self.path),
                remedy="give another --cache (none keeps nothing), or remove the file: all that is lost is time",
            ) from error  # fmt: skip

    def get(self, mixture: str, evaluator: str, *, with_logits: bool = False) -> Scores | None:
        """The kept result, or None; ``with_logits``: one without them does not serve."""
        with self._telling():
            row = self._database.execute(
                "SELECT scores, logits, labels FROM results WHERE mixture = ? AND evaluator = ?", (mixture, evaluator)
            ).fetchone()
        if row is None or (with_logits and row[1] is None):
            return None
        return Scores(json.loads(row[0]), *(_unpacked(blob) if with_logits else None for blob in row[1:]))

    def put(
        self, mixture: str, evaluator: str, scores: Scores, *, label: str, named: str, seconds: float, logits: bool
    ) -> None:
        """Keep a result, with its logits only where asked for: they are large."""
        now = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
        blobs = [_packed(blob) if logits else None for blob in (scores.logits, scores.labels)]
        row = (mixture, evaluator, label, named, json.dumps(dict(scores.values)), *blobs, seconds, now)
        with self._telling(), self._database:
            self._database.execute(f"INSERT OR REPLACE INTO results VALUES ({', '.join('?' * len(row))})", row)

    def digest(self, identity: str, compute: Callable[[], str]) -> str:
        """The digest of a file's content, computed once for each identity."""
        with self._telling():
            row = self._database.execute("SELECT digest FROM contents WHERE identity = ?", (identity,)).fetchone()
        if row is not None:
            return str(row[0])
        found = compute()
        with self._telling(), self._database:
            self._database.execute("INSERT OR REPLACE INTO contents VALUES (?, ?)", (identity, found))
        return found

    def state(self, key: str) -> bytes | None:
        """What a search under way has left."""
        with self._telling():
            row = self._database.execute("SELECT state FROM states WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def keep_state(self, key: str, state: bytes) -> None:
        """Put down how far a search is."""
        with self._telling(), self._database:
            self._database.execute("INSERT OR REPLACE INTO states VALUES (?, ?)", (key, state))

    def entries(self) -> list[Entry]:
        """Everything kept, oldest first."""
        with self._telling():
            rows = self._database.execute(
                "SELECT label, named, scores, seconds, made, logits IS NOT NULL FROM results ORDER BY made, rowid"
            ).fetchall()
        return [Entry(row[0], row[1], json.loads(row[2]), row[3], row[4], bool(row[5])) for row in rows]

    def clear(self) -> int:
        """Forget all results and digests; returns how many results."""
        with self._telling(), self._database:
            count = self._database.execute("DELETE FROM results").rowcount
            self._database.execute("DELETE FROM contents")
            self._database.execute("DELETE FROM states")
        return int(count)


def _packed(array: Any) -> bytes | None:
    if array is None:
        return None
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def _unpacked(blob: bytes | None) -> Any:
    return None if blob is None else np.load(io.BytesIO(blob), allow_pickle=False)
