"""A model hub on loopback: speaks the library's API for files, keeps a log of all requests, and fails on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Files = Mapping[str, bytes]
TOKEN = "hf_aSecretThatNobodyMayPrint"
LARGE = (".safetensors", ".bin", ".pt")
"""Files that a hub keeps elsewhere: asked for, it sends one to another host."""


@dataclass(frozen=True)
class Request:
    """What was asked, and how many bytes of a file were sent."""

    host: str
    method: str
    path: str
    range: str | None
    token: str | None
    status: int
    sent: int


@dataclass
class Fault:
    """What goes wrong with requests whose method and path match: so many times, or ever again."""

    pattern: str
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    keep: int | None = None
    """Bytes after which the connection is cut."""
    short: bool = False
    """Whether a range is answered whole in form, with half of its bytes."""
    whole: bool = False
    """Whether a range is answered with the whole file."""
    times: int = 1 << 30


@dataclass
class Model:
    """Commits by name of a revision, files by commit."""

    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: Files, revision: str = "main") -> str:
        """A new commit, to which the revision then points."""
        digest = hashlib.sha1(json.dumps([revision, len(self.commits)]).encode())
        for name, data in sorted(files.items()):
            digest.update(name.encode() + data)
        self.revisions[revision] = found = digest.hexdigest()
        self.commits[found] = dict(files)
        return found

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a revision."""
        commit = self.revisions.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


class Hub:
    """The models, the log, the faults to come; ``url`` is its address, ``elsewhere`` that of large files."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.url = self.elsewhere = ""
        self._lock = threading.Lock()

    def add(self, name: str, files: Files, revision: str = "main") -> str:
        """A commit of a model."""
        return self.models.setdefault(name, Model()).commit(files, revision)

    def note(self, request: Request) -> None:
        """Into the log."""
        with self._lock:
            self.log.append(request)

    def fault(self, line: str) -> Fault | None:
        """The fault that a request meets."""
        with self._lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None

    def sent(self, suffix: str = "") -> int:
        """Bytes that were sent of files with such an end."""
        return sum(one.sent for one in self.log if urlsplit(one.path).path.endswith(suffix))

    def whole(self) -> list[str]:
        """Weights that were asked for whole."""
        got = [one for one in self.log if (one.method, one.range, one.status) == ("GET", None, 200)]
        return [one.path for one in got if urlsplit(one.path).path.endswith(LARGE)]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, request: object, client_address: object) -> None:
        """Who asked has hung up: that is its right."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 20

    def log_message(self, format: str, *args: object) -> None:
        """Not to stderr."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server.hub
        fault = hub.fault(f"{self.command} {self.path}")
        if fault is not None and fault.status:
            self._send(fault.status, b'{"error": "on demand"}', dict(fault.headers))
            return
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(hub, found[1], found[2] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+|refs/pr/\d+)/(.+)", path):
            self._file(hub, found[1], found[2], found[3], fault)
        elif found := re.fullmatch(r"/store/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path):
            self._bytes(hub.models[found[1]].commits[found[2]][found[3]], {}, fault)
        else:
            self._send(404, b"{}", {})

    def _info(self, hub: Hub, name: str, revision: str) -> None:
        if name not in hub.models:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        found = hub.models[name].files(revision)
        if found is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        commit, files = found
        siblings = [
            {"rfilename": path, "size": len(data), "blobId": _git(data)}
            | ({"lfs": {"sha256": _sha(data), "size": len(data), "pointerSize": 130}} if path.endswith(LARGE) else {})
            for path, data in files.items()
        ]
        content = {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _file(self, hub: Hub, name: str, revision: str, path: str, fault: Fault | None) -> None:
        found = hub.models[name].files(revision) if name in hub.models else None
        if found is None or path not in found[1]:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound" if found else "RevisionNotFound"})
            return
        commit, files = found
        data = files[path]
        if not path.endswith(LARGE):
            self._bytes(data, {"X-Repo-Commit": commit, "ETag": f'"{_git(data)}"'}, fault)
            return
        self._send(
            302, b"",
            {
                "Location": f"{hub.elsewhere}/store/{name}/{commit}/{path}?signature=of-this-request",
                "X-Repo-Commit": commit, "X-Linked-Etag": f'"{_sha(data)}"', "X-Linked-Size": str(len(data)),
            },
        )  # fmt: skip

    def _bytes(self, data: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = headers | {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if asked is None or (fault is not None and fault.whole):
            self._send(200, data, headers, fault)
            return
        start, stop = int(asked[1]), min(int(asked[2] or len(data) - 1) + 1, len(data))
        part = data[start:stop]
        if fault is not None and fault.short:
            part = part[: len(part) // 2]
        self._send(206, part, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, fault)

    def _send(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
        hub = self.server.hub
        kept = body if fault is None or fault.keep is None else body[: fault.keep]
        is_file = status in (200, 206) and not self.path.startswith("/api/")
        token = self.headers.get("Authorization")
        host = "elsewhere" if self.path.startswith("/store/") else "hub"
        sent = len(kept) if is_file and self.command == "GET" else 0
        if not self.path.startswith("/api/") or self.path.startswith("/api/models/"):  # the rest is the library's own
            hub.note(Request(host, self.command, self.path, self.headers.get("Range"), token, status, sent))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(kept)
        if len(kept) < len(body):
            self.close_connection = True


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub, for as long as it is looked at."""
    hub = Hub()
    servers = []
    for attribute in ("url", "elsewhere"):
        server = _Server(("127.0.0.1", 0), _Handler)
        server.hub = hub
        setattr(hub, attribute, f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        servers.append((server, thread))
    try:
        yield hub
    finally:
        for server, thread in servers:
            server.shutdown()
            server.server_close()
            thread.join(10)
